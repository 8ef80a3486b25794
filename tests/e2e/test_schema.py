"""The public OpenAI document as judge: nothing it can generate gets a 5xx, and what we answer is what it describes.

vLLM writes null where the document leaves a member out, and its answers are passed on unread, so null is accepted
everywhere; and it leaves out a few members that the document requires, which are named here.
"""

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import extend
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation

from serving.gateway.endpoint import Endpoint
from serving.gateway.parameter import Action
from serving.gateway.parameters import FORMS
from serving.protocol.sse import EventDecoder
from tests.e2e.prompts import CAPITAL, EXTRACT, TOOLS, WEATHER
from tests.e2e.server import MODEL, ROOT, Json, Server

DOCUMENT = ROOT.parent / "shared" / "reference" / "openai-openapi-cut.json"
pytestmark = pytest.mark.skipif(
    not DOCUMENT.is_file(), reason=f"the public OpenAI document is not here ({DOCUMENT.name})"
)

OPERATIONS = (
    ("/chat/completions", "POST"), ("/completions", "POST"), ("/responses", "POST"), ("/embeddings", "POST"),
    ("/models", "GET"), ("/models/{model}", "GET"),
)  # fmt: skip
MAX_EXAMPLES = 40
ANSWERS = {
    "/chat/completions": "CreateChatCompletionResponse",
    "/completions": "CreateCompletionResponse",
    "/responses": "Response",
    "/models": "ListModelsResponse",
    "/models/{model}": "Model",
}
#: What vLLM 0.29 leaves out: of a response, of its usage's details, of a choice's logprobs.
LEFT_OUT = frozenset({"error", "cache_write_tokens", "refusal"})
MAX_TOKENS = 4
#: What every case asks for in the end, so that one that is served costs little.
_BOUNDS: dict[str, Json] = {
    "/chat/completions": {"max_completion_tokens": MAX_TOKENS},
    "/completions": {"max_tokens": MAX_TOKENS},
    "/responses": {"max_output_tokens": MAX_TOKENS},
}
_PROMPTS: dict[str, Json] = {
    "/chat/completions": {"messages": CAPITAL},
    "/completions": {"prompt": "Count from 1"},
    "/responses": {"input": "What is the capital of France?"},
}


def _lenient(check: Any) -> Any:
    def checked(judge: Any, value: Any, instance: Any, schema: Any) -> Any:
        return () if instance is None else check(judge, value, instance, schema)

    return checked


def _required(judge: Any, names: list[str], instance: Any, schema: Any) -> Any:
    return Draft202012Validator.VALIDATORS["required"](judge, [*set(names) - LEFT_OUT], instance, schema)


#: `oneOf` becomes `anyOf`: with null in it, an object may fit several of the document's alternatives.
_CHECKS = Draft202012Validator.VALIDATORS | {"oneOf": Draft202012Validator.VALIDATORS["anyOf"], "required": _required}
_Judge = extend(Draft202012Validator, {name: _lenient(check) for name, check in _CHECKS.items()})


@pytest.fixture(scope="module")
def document() -> Json:
    return dict(json.loads(DOCUMENT.read_text()))


def judge(document: Json, name: str, value: object) -> None:
    """Raises ValidationError when ``value`` is not what the document calls ``name``."""
    _Judge({"$ref": f"#/components/schemas/{name}", "components": document["components"]}).validate(value)


@pytest.fixture(scope="module")
def operations(document: Json) -> dict[tuple[str, str], APIOperation]:
    wanted = {path for path, _ in OPERATIONS}
    document = document | {"paths": {path: item for path, item in document["paths"].items() if path in wanted}}
    config = schemathesis.Config.from_dict({"generation": {"allow-x00": False, "allow-extra-parameters": False}})
    schema = schemathesis.openapi.from_dict(document, config=config)
    return {(path, method): schema[path][method] for path, method in OPERATIONS}


def tamed(path: str, case: schemathesis.Case) -> schemathesis.Case:
    """The case for our model and with a short answer."""
    if isinstance(case.body, dict):
        case.body = {**case.body, "model": MODEL, **_BOUNDS.get(path, {})}
    return case


def eased(path: str, case: schemathesis.Case) -> schemathesis.Case:
    """The case with a plain prompt and without what is refused on principle: most of its fields reach the engine."""
    if isinstance(case.body, dict):
        table = FORMS[Endpoint(f"/v1{path}")].parameters
        served = {name for name, parameter in table.items() if parameter.action is not Action.REFUSED} - {"stream"}
        case.body = {name: value for name, value in case.body.items() if name in served} | _PROMPTS.get(path, {})
    return tamed(path, case)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_whatever_is_sent_the_answer_is_documented_and_no_fault_of_ours(
    server: Server,
    http: httpx.Client,
    document: Json,
    operations: dict[tuple[str, str], APIOperation],
    path: str,
    method: str,
) -> None:
    """Requests that fit the document, that break it, and that fit what we serve of it."""
    operation = operations[path, method]
    fitting, breaking = (operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE))
    kinds = [fitting.map(lambda case: tamed(path, case))]
    if method == "POST":
        kinds += [breaking.map(lambda case: tamed(path, case)), fitting.map(lambda case: eased(path, case))]

    @given(st.one_of(kinds))
    @settings(
        max_examples=MAX_EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def send(case: schemathesis.Case) -> None:
        answer = case.call(base_url=f"{server.url}/v1", headers={"authorization": f"Bearer {server.key}"}, timeout=60)
        assert answer.status_code < 500, answer.text
        if answer.status_code == 200:
            judge(document, ANSWERS[path], json.loads(answer.text))
        else:
            error = json.loads(answer.text)["error"]
            assert error.keys() == {"message", "type", "param", "code"}

    send()
    assert http.get("/ready").status_code == 200


ANSWERED: dict[str, tuple[str, Json]] = {
    "chat": ("/chat/completions", {"messages": CAPITAL}),
    "chat, n and logprobs": (
        "/chat/completions",
        {"messages": CAPITAL, "n": 2, "temperature": 1, "logprobs": True, "top_logprobs": 2},
    ),
    "chat, tools": ("/chat/completions", {"messages": WEATHER, "tools": TOOLS, "temperature": 0}),
    "chat, JSON": ("/chat/completions", {"messages": EXTRACT, "response_format": {"type": "json_object"}}),
    "completion": ("/completions", {"prompt": "Count from 1", "logprobs": 2, "max_tokens": 4}),
    "response": ("/responses", {"input": "What is the capital of France?"}),
    "response, tools": (
        "/responses",
        {"input": "What is the weather in Paris?", "tools": [{"type": "function", **TOOLS[0]["function"]}]},
    ),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_is_as_documented(http: httpx.Client, document: Json, name: str) -> None:
    path, fields = ANSWERED[name]
    answer = http.post(f"/v1{path}", json={"model": MODEL, **fields})
    assert answer.status_code == 200, answer.text
    judge(document, ANSWERS[path], answer.json())


STREAMED = {
    "/chat/completions": (
        "CreateChatCompletionStreamResponse",
        {"messages": WEATHER, "tools": TOOLS, "temperature": 0},
    ),
    "/completions": ("CreateCompletionResponse", {"prompt": "Count from 1", "logprobs": 2, "max_tokens": 4}),
    "/responses": ("ResponseStreamEvent", {"input": "What is the capital of France?"}),
}


@pytest.mark.parametrize("path", STREAMED)
def test_every_event_of_a_stream_is_as_documented(http: httpx.Client, document: Json, path: str) -> None:
    name, fields = STREAMED[path]
    answer = http.post(f"/v1{path}", json={"model": MODEL, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    events = [data for data in EventDecoder().feed(answer.content) if data != b"[DONE]"]
    assert events
    for event in events:
        judge(document, name, json.loads(event))
