"""What the official clients really send passes, and the Responses and Messages APIs are checked in their own forms."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import anthropic
import openai
import pytest
from pydantic import BaseModel

from serving.config.limits import Limits
from serving.errors import BadRequest
from serving.gateway.endpoint import Endpoint
from serving.gateway.json_body import parse
from serving.gateway.validate import RequestContext, ValidRequest, validate

Fields = dict[str, object]

LIMITS = Limits()
CONTEXT = RequestContext(max_model_len=200_000, cache_salt="salt", request_id="req-1")


class Answer(BaseModel):
    """A structured answer, as the clients' parse helpers take it."""

    city: str
    amount: float


class _Ear(BaseHTTPRequestHandler):
    """Takes every request down and answers it with an error."""

    heard: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.heard.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(418)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Wire:
    """Both clients, on a server that only listens."""

    def __init__(self, url: str) -> None:
        self.openai = openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)
        self.anthropic = anthropic.Anthropic(api_key="k", base_url=url, max_retries=0)
        _Ear.heard.clear()

    def close(self) -> None:
        self.openai.close()
        self.anthropic.close()

    def validated(self) -> ValidRequest:
        ((target, body),) = _Ear.heard
        return validate(Endpoint(target.partition("?")[0]), parse(body, LIMITS), LIMITS, CONTEXT)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Ear) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def wire(url: str) -> Iterator[Wire]:
    wire = Wire(url)
    yield wire
    wire.close()


Say = Callable[[Wire], object]
USER = {"role": "user", "content": "Hi"}
FUNCTION = {"name": "f", "description": "d", "parameters": Answer.model_json_schema()}

OPENAI_CALLS: dict[str, Say] = {
    "chat": lambda w: w.openai.chat.completions.create(model="m", messages=[USER]),
    "chat stream": lambda w: w.openai.chat.completions.create(
        model="m", messages=[USER], stream=True, stream_options={"include_usage": True}
    ),
    "chat with everything": lambda w: w.openai.chat.completions.create(
        model="m", messages=[USER], temperature=0.2, top_p=0.9, n=2, seed=7, stop=["a", "b"], logit_bias={"5": -100},
        logprobs=True, top_logprobs=20, presence_penalty=1, frequency_penalty=-1, max_completion_tokens=9, user="u",
        tools=[{"type": "function", "function": FUNCTION}], tool_choice="auto", parallel_tool_calls=False, store=True,
        metadata={"a": "b"}, service_tier="flex", verbosity="low", reasoning_effort="low", safety_identifier="s",
        prompt_cache_key="p", modalities=["text"], prediction={"type": "content", "content": "x"},
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "return_token_ids": True},
    ),
    "chat parse": lambda w: w.openai.chat.completions.parse(model="m", messages=[USER], response_format=Answer),
    "chat parse tools": lambda w: w.openai.chat.completions.parse(
        model="m", messages=[USER], tools=[openai.pydantic_function_tool(Answer)]
    ),
    "chat named tool": lambda w: w.openai.chat.completions.create(
        model="m", messages=[USER], tools=[{"type": "function", "function": FUNCTION}],
        tool_choice={"type": "function", "function": {"name": "f"}},
    ),
    "completions": lambda w: w.openai.completions.create(
        model="m", prompt=["a", "b"], max_tokens=5, echo=True, logprobs=3, best_of=2, n=2, suffix=None, stream=True
    ),
    "completions of ids": lambda w: w.openai.completions.create(model="m", prompt=[[1, 2], [3]]),
    "responses": lambda w: w.openai.responses.create(model="m", input="Hi", instructions="Be brief."),
    "responses with everything": lambda w: w.openai.responses.create(
        model="m", input=[{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], background=False,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"], top_logprobs=5, max_output_tokens=20,
        metadata={"a": "b"}, parallel_tool_calls=True, reasoning={"effort": "low", "summary": "auto"}, store=True,
        stream=True, temperature=1, text={"verbosity": "low"}, tool_choice="auto", top_p=1, truncation="auto", user="u",
        tools=[{"type": "function", "strict": True, **FUNCTION}], service_tier="auto", max_tool_calls=3,
    ),
    "responses parse": lambda w: w.openai.responses.parse(model="m", input="Hi", text_format=Answer),
    "embeddings": lambda w: w.openai.embeddings.create(model="m", input=["a", "b"], dimensions=64),
}  # fmt: skip

ANTHROPIC_CALLS: dict[str, Say] = {
    "messages": lambda w: w.anthropic.messages.create(model="m", max_tokens=9, messages=[USER]),
    "messages with everything": lambda w: w.anthropic.messages.create(
        model="m", max_tokens=2000, messages=[USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
        system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}], stop_sequences=["x"],
        stream=True, metadata={"user_id": "u"}, service_tier="auto",
        thinking={"type": "enabled", "budget_tokens": 1024},
        tools=[{"name": "f", "description": "d", "input_schema": Answer.model_json_schema()}],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        extra_body={"temperature": 0.5, "top_k": 5, "top_p": 0.9},
    ),
    "count tokens": lambda w: w.anthropic.messages.count_tokens(model="m", messages=[USER], system="s"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPENAI_CALLS)
def test_what_the_openai_client_sends_passes(wire: Wire, name: str) -> None:
    with pytest.raises(openai.APIStatusError):
        OPENAI_CALLS[name](wire)
    assert wire.validated().model == "m"


@pytest.mark.parametrize("name", ANTHROPIC_CALLS)
def test_what_the_anthropic_client_sends_passes(wire: Wire, name: str) -> None:
    with pytest.raises(anthropic.APIStatusError):
        ANTHROPIC_CALLS[name](wire)
    assert wire.validated().model == "m"


# ---------------------------------------------------------------------------------------------------------- responses


def respond(**fields: object) -> ValidRequest:
    body = {"model": "m", "input": "Hi", **fields}
    return validate(Endpoint.RESPONSES, parse(json.dumps(body).encode(), LIMITS), LIMITS, CONTEXT)


def refused(check: Callable[..., ValidRequest], **fields: object) -> str | None:
    with pytest.raises(BadRequest) as caught:
        check(**fields)
    return caught.value.param


def test_a_response_is_never_stored_whatever_is_asked() -> None:
    for store in (True, False, None):
        assert respond(store=store).body["store"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": []}, "context_management"),
        ({"enable_response_messages": True}, "enable_response_messages"),
        ({"previous_input_messages": []}, "previous_input_messages"),
        ({"tools": [{"type": "mcp", "server_url": "http://10.0.0.1"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "g"}},
            "tool_choice",
        ),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "mcp_call"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"formt": {}}}, "text.formt"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"include": ["everything"]}, "include[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"structured_outputs": {"choice": ["a"]}, "text": {"format": {"type": "json_object"}}}, "structured_outputs"),
    ],
)
def test_what_needs_a_store_a_tool_server_or_eyes_is_refused(fields: Fields, param: str) -> None:
    assert refused(respond, **fields) == param


def test_an_assistants_parts_become_the_one_that_the_engine_reads() -> None:
    parts = [
        {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
        {"type": "refusal", "refusal": "b"},
    ]
    items = [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": parts}]
    (item,) = respond(input=items).body["input"]  # type: ignore[misc]
    assert item["content"] == [{"type": "output_text", "text": "ab", "annotations": []}]


def test_a_conversation_handed_back_keeps_calls_and_reasoning_and_loses_what_cannot_be_read() -> None:
    items = [
        {"role": "user", "content": "2+2?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "AAAA", "status": None},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}", "id": "fc_1", "namespace": None},
        {"type": "function_call_output", "call_id": "c", "output": "4"},
    ]
    sent = respond(input=items, include=["reasoning.encrypted_content"]).body
    assert sent["include"] == []
    assert [sorted(item) for item in sent["input"]] == [  # type: ignore[attr-defined]
        ["content", "role"],
        ["id", "summary", "type"],
        ["arguments", "call_id", "id", "name", "type"],
        ["call_id", "output", "type"],
    ]


# ----------------------------------------------------------------------------------------------------------- messages


def message(**fields: object) -> ValidRequest:
    body = {"model": "m", "max_tokens": 16, "messages": [USER], **fields}
    return validate(Endpoint.MESSAGES, parse(json.dumps(body).encode(), LIMITS), LIMITS, CONTEXT)


def test_a_turn_with_thought_call_and_result_passes() -> None:
    turn = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "x"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1]}},
    ]
    result = [
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "4"}], "is_error": False}
    ]
    messages = [USER, {"role": "assistant", "content": turn}, {"role": "user", "content": result}]
    assert message(messages=messages).body["messages"] == messages


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}],
                    }
                ]
            },
            "messages[0].content[0].content[0].type",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"mcp_servers": [{"url": "http://10.0.0.1"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences"),
        ({"output_config": {"effort": "odd"}}, "output_config.effort"),
        ({"stop": ["a"]}, "stop"),
        ({"n": 2}, "n"),
    ],
)
def test_what_messages_does_not_serve_is_refused(fields: Fields, param: str) -> None:
    assert refused(message, **fields) == param


# ------------------------------------------------------------------------------------------ embeddings, tokens, prompts


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (Endpoint.EMBEDDINGS, {"input": ["a"] * 2049}, "input"),
        (Endpoint.EMBEDDINGS, {"input": []}, "input"),
        (Endpoint.EMBEDDINGS, {"input": ["a", 1]}, "input[1]"),
        (Endpoint.EMBEDDINGS, {"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        (Endpoint.EMBEDDINGS, {"input": "a", "dimensions": 0}, "dimensions"),
        (Endpoint.EMBEDDINGS, {"input": "a", "messages": []}, "messages"),
        (Endpoint.TOKENIZE, {}, "prompt"),
        (Endpoint.TOKENIZE, {"prompt": "a", "messages": [USER]}, "prompt"),
        (Endpoint.TOKENIZE, {"prompt": ["a"]}, "prompt"),
        (Endpoint.DETOKENIZE, {"tokens": [1, -1]}, "tokens[1]"),
        (Endpoint.DETOKENIZE, {"tokens": [1, 2**31]}, "tokens[1]"),
        (Endpoint.DETOKENIZE, {"tokens": [1, True]}, "tokens[1]"),
        (Endpoint.DETOKENIZE, {"tokens": [1, 2.5]}, "tokens[1]"),
        (Endpoint.DETOKENIZE, {"tokens": []}, "tokens"),
        (Endpoint.DETOKENIZE, {"tokens": "a"}, "tokens"),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2**70]}, "prompt[1]"),
        (Endpoint.COMPLETIONS, {"prompt": [1, -5]}, "prompt[1]"),
        (Endpoint.COMPLETIONS, {"prompt": [[1], "a"]}, "prompt[1]"),
        (Endpoint.COMPLETIONS, {"prompt": [[]]}, "prompt[0]"),
        (Endpoint.COMPLETIONS, {"prompt": [None]}, "prompt[0]"),
        (Endpoint.COMPLETIONS, {"prompt": {}}, "prompt"),
    ],
)
def test_bad_inputs_are_refused_at_their_place(endpoint: Endpoint, fields: Fields, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        validate(endpoint, parse(json.dumps({"model": "m", **fields}).encode(), LIMITS), LIMITS, CONTEXT)
    assert caught.value.param == param


def test_a_conversation_can_be_tokenised() -> None:
    body: Fields = {"model": "m", "messages": [USER], "add_generation_prompt": False, "continue_final_message": True}
    assert validate(Endpoint.TOKENIZE, body, LIMITS, CONTEXT).body == body
    both = {**body, "add_generation_prompt": True}
    with pytest.raises(BadRequest, match="add_generation_prompt"):
        validate(Endpoint.TOKENIZE, both, LIMITS, CONTEXT)
