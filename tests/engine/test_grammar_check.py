"""Constraints: where they stand in a request, what is asked of the sandbox, and what is remembered."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config.limits import Limits
from serving.engine import grammar_check as module
from serving.engine.base import RequestContext, current_request
from serving.engine.constraints import canonical, constraints_of
from serving.engine.grammar_check import CheckedApp, GrammarCheck, Refused, Settled
from serving.engine.sandbox import Overrun, Unavailable
from serving.gateway.endpoint import Endpoint
from serving.gateway.validate import RequestContext as GatewayContext
from serving.gateway.validate import validate
from serving.protocol.asgi import Message
from tests.support.dialects import BODIES
from tests.support.engines import Recorder

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
GOOD = {"backend": "xgrammar", "was_auto": True, "grammar": None}
LIMITS = Limits(allow_regex=True, allow_grammar=True)


class Answers:
    """A runner that answers as it is told, and keeps the jobs. ``go`` holds its answers back."""

    def __init__(self, answer: Callable[[list[Any]], list[dict[str, Any]]] | Exception) -> None:
        self.answer = answer
        self.jobs: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()

    async def run(self, job: bytes) -> bytes:
        self.jobs.append(json.loads(job))
        await self.go.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return json.dumps(self.answer(self.jobs[-1])).encode()


def all_good(job: list[Any]) -> list[dict[str, Any]]:
    return [GOOD for _ in job]


# ---------------------------------------------------------------------------------------------- where constraints stand

FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
FLAT = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}
PLACES: list[tuple[Endpoint, dict[str, Any], list[str]]] = [
    (Endpoint.CHAT, {"response_format": FORM}, ["response_format.json_schema.schema"]),
    (Endpoint.CHAT, {"response_format": {"type": "json_object"}}, []),
    (Endpoint.CHAT, {"response_format": {"type": "text"}}, []),
    (Endpoint.CHAT, {"response_format": {"type": "structural_tag", "format": {}}}, ["response_format"]),
    (Endpoint.COMPLETIONS, {"response_format": FORM}, ["response_format.json_schema.schema"]),
    (Endpoint.COMPLETIONS, {"structured_outputs": {"json": SCHEMA}}, ["structured_outputs.json"]),
    (Endpoint.COMPLETIONS, {"structured_outputs": {"regex": "a+"}}, ["structured_outputs.regex"]),
    (Endpoint.CHAT, {"structured_outputs": {"grammar": "root ::= x"}}, ["structured_outputs.grammar"]),
    (Endpoint.CHAT, {"structured_outputs": {"choice": ["a", "b"]}}, ["structured_outputs.choice"]),
    (Endpoint.RESPONSES, {"text": FLAT}, ["text.format.schema"]),
    (Endpoint.RESPONSES, {"text": {"verbosity": "low"}}, []),
    (Endpoint.MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
     ["output_config.format.schema"]),
    (Endpoint.MESSAGES, {"output_config": {"effort": "low"}}, []),
]  # fmt: skip


def chat_tools(*strict: bool | None) -> dict[str, Any]:
    functions = [{"name": f"f{index}", "parameters": SCHEMA} for index in range(len(strict))]
    marked = [f if s is None else {**f, "strict": s} for f, s in zip(functions, strict, strict=True)]
    return {"tools": [{"type": "function", "function": function} for function in marked]}


def flat_tools(*strict: bool | None) -> dict[str, Any]:
    return {"tools": [{"type": "function", **tool["function"]} for tool in chat_tools(*strict)["tools"]]}


def claude_tools(count: int) -> dict[str, Any]:
    return {"tools": [{"name": f"f{index}", "input_schema": SCHEMA} for index in range(count)]}


FIRST, SECOND = "tools[0].function.parameters", "tools[1].function.parameters"
PLACES += [
    (Endpoint.CHAT, chat_tools(None, None), []),
    (Endpoint.CHAT, {**chat_tools(None, None), "tool_choice": "auto"}, []),
    (Endpoint.CHAT, {**chat_tools(None, None), "tool_choice": "required"}, [FIRST, SECOND]),
    (Endpoint.CHAT, {**chat_tools(None, False), "tool_choice": "required"}, [FIRST, SECOND]),
    (Endpoint.CHAT, {**chat_tools(None, None), "tool_choice": {"type": "function", "function": {"name": "f1"}}},
     [SECOND]),
    (Endpoint.CHAT, chat_tools(True, None, False), [FIRST, SECOND]),
    (Endpoint.CHAT, chat_tools(False, False), []),
    (Endpoint.RESPONSES, {**flat_tools(None), "tool_choice": "required"}, ["tools[0].parameters"]),
    (Endpoint.RESPONSES, {**flat_tools(None), "tool_choice": {"type": "function", "name": "f0"}},
     ["tools[0].parameters"]),
    (Endpoint.RESPONSES, flat_tools(True), ["tools[0].parameters"]),
    (Endpoint.MESSAGES, {**claude_tools(2), "tool_choice": {"type": "any"}},
     ["tools[0].input_schema", "tools[1].input_schema"]),
    (Endpoint.MESSAGES, {**claude_tools(2), "tool_choice": {"type": "tool", "name": "f1"}}, ["tools[1].input_schema"]),
    (Endpoint.MESSAGES, {**claude_tools(1), "tool_choice": {"type": "auto"}}, []),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "fields", "params"), PLACES)
def test_what_the_gateway_marks_is_where_the_replica_finds_constraints(
    endpoint: Endpoint, fields: dict[str, Any], params: list[str]
) -> None:
    context = GatewayContext(max_model_len=4096, cache_salt="salt", request_id="req-1")
    request = validate(endpoint, {**BODIES[endpoint.value], **fields}, LIMITS, context)
    assert [constraint.param for constraint in constraints_of(request.body)] == params
    assert request.is_constrained or not params


@pytest.mark.parametrize("endpoint", [Endpoint.TOKENIZE, Endpoint.COUNT_TOKENS])
def test_what_makes_no_answer_is_not_constrained(endpoint: Endpoint) -> None:
    tools = chat_tools(True) if endpoint is Endpoint.TOKENIZE else {"tools": [claude_tools(1)["tools"][0]]}
    bodies = {Endpoint.TOKENIZE: "/v1/chat/completions", Endpoint.COUNT_TOKENS: "/v1/messages"}
    fields = {name: BODIES[bodies[endpoint]][name] for name in ("model", "messages")}
    context = GatewayContext(max_model_len=4096, cache_salt="salt", request_id="req-1")
    assert not validate(endpoint, {**fields, **tools}, LIMITS, context).is_constrained


def test_a_plain_request_is_not_constrained() -> None:
    context = GatewayContext(max_model_len=4096, cache_salt="salt", request_id="req-1")
    for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES):
        assert not validate(endpoint, dict(BODIES[endpoint.value]), LIMITS, context).is_constrained


@given(st.permutations(["regex", "disable_any_whitespace", "whitespace_pattern"]))
def test_equal_constraints_are_equal_bytes_in_whatever_order_they_came(names: list[str]) -> None:
    values = {"regex": "a", "disable_any_whitespace": True, "whitespace_pattern": " "}
    fields = {name: values[name] for name in names}
    assert list(canonical({**fields, "json": None, "disable_additional_properties": False}).items()) == [
        (name, values[name]) for name in ("regex", "disable_any_whitespace", "whitespace_pattern")
    ]


# ------------------------------------------------------------------------------------------------------------ the check


async def test_an_answer_is_settled_and_asked_for_once() -> None:
    runner = Answers(all_good)
    check = GrammarCheck(runner, 2.0)
    for _ in range(3):
        assert await check.settle([{"json": SCHEMA}]) == (Settled("xgrammar", True, None),)
    assert runner.jobs == [[{"json": SCHEMA}]]


async def test_a_refusal_names_the_constraint_at_fault_and_is_asked_for_once() -> None:
    runner = Answers(lambda _: [GOOD, {"error": "not in this world\nat line 7"}])
    check = GrammarCheck(runner, 2.0)
    for _ in range(3):
        with pytest.raises(Refused, match=r"^not in this world$") as caught:
            await check.settle([{"json": SCHEMA}, {"regex": "("}])
        assert caught.value.index == 1
    assert len(runner.jobs) == 1


async def test_an_overrun_is_a_refusal_and_is_asked_for_once() -> None:
    runner = Answers(Overrun())
    check = GrammarCheck(runner, 2.0)
    for _ in range(3):
        with pytest.raises(Refused, match=r"more than 2 s of processor time"):
            await check.settle([{"json": SCHEMA}])
    assert len(runner.jobs) == 1


async def test_what_could_not_be_asked_is_asked_again() -> None:
    runner = Answers(Unavailable("busy"))
    check = GrammarCheck(runner, 2.0)
    with pytest.raises(Unavailable):
        await check.settle([{"json": SCHEMA}])
    runner.answer = all_good
    assert await check.settle([{"json": SCHEMA}])
    assert len(runner.jobs) == 2


async def test_the_same_question_at_the_same_time_is_one_job_also_when_the_first_to_ask_leaves() -> None:
    runner = Answers(all_good)
    runner.go.clear()
    check = GrammarCheck(runner, 2.0)
    asking = [asyncio.create_task(check.settle([{"json": SCHEMA}])) for _ in range(3)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    runner.go.set()
    assert await asyncio.gather(*asking[1:]) == [(Settled("xgrammar", True, None),)] * 2
    assert len(runner.jobs) == 1


async def test_only_so_many_verdicts_are_kept_and_the_least_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VERDICTS", 2)
    runner = Answers(all_good)
    check = GrammarCheck(runner, 2.0)
    for pattern in ("a", "b", "a", "c", "a", "b"):
        await check.settle([{"regex": pattern}])
    assert [job[0]["regex"] for job in runner.jobs] == ["a", "b", "c", "b"]


async def test_a_large_verdict_is_not_kept() -> None:
    runner = Answers(lambda _: [GOOD | {"grammar": "x" * 100_000}])
    check = GrammarCheck(runner, 2.0)
    for _ in range(2):
        assert len((await check.settle([{"choice": ["x"]}]))[0].grammar or "") == 100_000
    assert len(runner.jobs) == 2


async def test_what_cannot_be_written_down_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(500):
        schema = {"not": schema}
    with pytest.raises(Refused, match="nested"):
        await GrammarCheck(Answers(all_good), 2.0).settle([{"json": schema}])


# ---------------------------------------------------------------------------------------------------------- the request


async def serve(
    runner: Answers, body: dict[str, Any], is_constrained: bool = True
) -> tuple[Recorder, int, dict[str, Any]]:
    """What the app behind the check got, and what was answered."""
    app, sent = Recorder(b'{"ok": true}'), []
    waiting: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Message:
        return waiting.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    current_request.set(RequestContext(is_constrained=is_constrained))
    await CheckedApp(app, GrammarCheck(runner, 2.0))({"type": "http", "path": "/v1/x"}, receive, send)
    return app, sent[0]["status"], json.loads(sent[1]["body"])


async def test_a_request_that_passes_reaches_the_engine_as_it_was() -> None:
    body = {"response_format": FORM}
    app, status, _ = await serve(Answers(all_good), body)
    assert (status, [json.loads(seen) for seen in app.bodies]) == (200, [body])


async def test_a_request_without_the_mark_is_not_even_read() -> None:
    runner = Answers(all_good)
    app, status, _ = await serve(runner, {"response_format": FORM}, is_constrained=False)
    assert (status, len(app.bodies), runner.jobs) == (200, 1, [])


async def test_a_mark_without_a_constraint_costs_no_job() -> None:
    runner = Answers(all_good)
    app, _, _ = await serve(runner, {"response_format": {"type": "text"}})
    assert (len(app.bodies), runner.jobs) == (1, [])


async def test_a_refused_request_is_a_400_with_its_field_and_reaches_no_engine() -> None:
    app, status, answer = await serve(Answers(lambda _: [{"error": "no"}]), {"text": FLAT})
    assert (status, app.bodies) == (400, [])
    assert answer["error"]["param"] == "text.format.schema"
    assert answer["error"]["message"] == "Invalid 'text.format.schema': no grammar can be made of it: no."


async def test_the_tool_at_fault_is_named_and_all_of_them_where_they_take_too_long_together() -> None:
    body = {**chat_tools(None, None), "tool_choice": "required"}
    _, _, answer = await serve(Answers(lambda _: [GOOD, {"error": "no"}]), body)
    assert answer["error"]["param"] == SECOND
    _, _, answer = await serve(Answers(Overrun()), body)
    assert answer["error"]["param"] == "tools"


async def test_a_check_that_cannot_be_made_is_a_503_and_reaches_no_engine() -> None:
    app, status, _ = await serve(Answers(Unavailable("busy")), {"text": FLAT})
    assert (status, app.bodies) == (503, [])
