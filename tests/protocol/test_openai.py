"""Error bodies, events and headers."""

import json

import pytest

from serving.errors import (
    ANSWERS,
    ApiError,
    BudgetExhausted,
    EngineUnavailable,
    InvalidJson,
    RateLimited,
    Unauthenticated,
)
from serving.protocol.openai import Dialect, error_body, error_event, error_headers
from serving.protocol.sse import EventDecoder


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_every_openai_error_has_all_four_keys(kind: type[ApiError]) -> None:
    error = json.loads(error_body(kind("why")))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] is None or isinstance(error["code"], str)


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_every_anthropic_error_has_type_and_message(kind: type[ApiError]) -> None:
    body = json.loads(error_body(kind("why"), Dialect.ANTHROPIC))
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}


@pytest.mark.parametrize("dialect", Dialect)
def test_an_error_event_is_no_clean_end(dialect: Dialect) -> None:
    event = error_event(EngineUnavailable("gone"), dialect)
    [data] = EventDecoder().feed(event)
    assert json.loads(data)["error"]["message"] == "gone"
    assert b"[DONE]" not in event
    assert b"finish_reason" not in event


def test_an_error_event_of_responses_says_that_it_is_one() -> None:
    event = error_event(EngineUnavailable("gone"), Dialect.RESPONSES)
    [data] = EventDecoder().feed(event)
    assert json.loads(data)["type"] == "error"


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    headers = dict(error_headers(RateLimited("slow down", retry_after_s=0.2)))
    assert headers[b"retry-after"] == b"1"
    assert headers[b"retry-after-ms"] == b"200"


def test_clients_are_told_not_to_retry_what_cannot_succeed() -> None:
    assert (b"x-should-retry", b"false") in error_headers(BudgetExhausted("spent"))
    assert (b"x-should-retry", b"false") not in error_headers(RateLimited("slow down"))
    assert error_headers(InvalidJson("no")) == []


def test_a_401_names_the_scheme() -> None:
    assert error_headers(Unauthenticated("no key")) == [(b"www-authenticate", b"Bearer")]
