"""What Ballast answers is what vLLM answers: one engine, two ways to it, the same content but for ids and times."""

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from serving.protocol.sse import EventDecoder
from tests.e2e.prompts import CAPITAL, COUNT_TO_TEN, EXTRACT, TOOLS, WEATHER
from tests.e2e.server import MODEL, Json, Server

SCHEMA: Json = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}

REQUESTS: dict[str, tuple[str, Json]] = {
    "chat": ("/v1/chat/completions", {"messages": COUNT_TO_TEN, "max_tokens": 60}),
    "chat, logprobs": ("/v1/chat/completions", {"messages": CAPITAL, "logprobs": True, "top_logprobs": 4}),
    "chat, tools": ("/v1/chat/completions", {"messages": WEATHER, "tools": TOOLS}),
    "chat, schema": ("/v1/chat/completions", {"messages": EXTRACT, "response_format": FORMAT, "max_tokens": 60}),
    "completion": ("/v1/completions", {"prompt": "Count from 1", "max_tokens": 12, "logprobs": 2}),
    "response": ("/v1/responses", {"input": "Count from 1 to 10.", "max_output_tokens": 60}),
    "message": ("/v1/messages", {"messages": COUNT_TO_TEN, "max_tokens": 60}),
}
#: Different for every request, by their nature.
_TEXTS = frozenset({"content", "text", "delta", "arguments", "partial_json"})
_LISTS = frozenset({"tokens", "token_logprobs", "top_logprobs", "text_offset", "content", "logprobs"})
_ENDS = frozenset({"finish_reason", "stop_reason"})
VOLATILE = frozenset(
    {"id", "created", "created_at", "completed_at", "item_id", "request_id", "response_id", "sequence_number"}
)


def settled(value: Any) -> Any:
    """``value`` without what differs between two requests of the same content."""
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [settled(item) for item in value]
    return value


def joined(first: Any, second: Any, key: str = "") -> Any:
    """Two pieces of one answer as one piece; None when they are not that. Logprobs are pieces where text is."""
    if isinstance(first, dict) and isinstance(second, dict):
        shared = {name: joined(first[name], second[name], name) for name in first if name in second}
        return None if any(shared[name] is None is not first[name] for name in shared) else first | second | shared
    if isinstance(first, list) and isinstance(second, list):
        if key in _LISTS:
            return first + second
        merged_items = [joined(*pair, key) for pair in zip(first, second, strict=False)]
        return merged_items if len(first) == len(second) and None not in merged_items else None
    if isinstance(first, str) and isinstance(second, str) and key in _TEXTS:
        return first + second
    return second if first == second or (first is None and key in _ENDS) else None


def events(answer: httpx.Response) -> list[Any]:
    """The events of a stream. Neighbouring pieces of one text count as one, whatever the cut, and so does its end: vLLM
    itself joins tokens when it is ahead of its reader, the last one with what ends the text."""
    found: list[Any] = []
    for data in EventDecoder().feed(answer.content):
        event = data if data == b"[DONE]" else settled(orjson.loads(data))
        whole = joined(found[-1], event) if found and isinstance(event, dict) else None
        if whole is None:
            found.append(event)
        else:
            found[-1] = whole
    return found


@pytest.fixture
def raw(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.raw_url(), timeout=60, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("name", REQUESTS)
def test_a_whole_answer_is_vllms_own(http: httpx.Client, raw: httpx.Client, name: str) -> None:
    path, fields = REQUESTS[name]
    body = {"model": MODEL, "temperature": 0, **fields}
    ours, theirs = http.post(path, json=body), raw.post(path, json=body)
    assert (ours.status_code, theirs.status_code) == (200, 200), ours.text + theirs.text
    assert settled(ours.json()) == settled(theirs.json())
    assert ours.headers["content-type"] == theirs.headers["content-type"]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_stream_is_vllms_own_event_by_event(http: httpx.Client, raw: httpx.Client, name: str) -> None:
    path, fields = REQUESTS[name]
    body = {"model": MODEL, "temperature": 0, "stream": True, **fields}
    if path in ("/v1/chat/completions", "/v1/completions"):
        body["stream_options"] = {"include_usage": True}
    ours, theirs = http.post(path, json=body), raw.post(path, json=body)
    assert (ours.status_code, theirs.status_code) == (200, 200), ours.text + theirs.text
    assert events(ours) == events(theirs)
