"""An answer is read the same however its bytes are cut, and says what is wrong with it."""

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.answer import Answer


def event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def chunk(finish: str | None = None, **delta: object) -> bytes:
    return event({"id": "x1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


USAGE = event({"choices": [], "usage": {
    "prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4},
}})  # fmt: skip
WHOLE = (
    chunk(role="assistant", content="") + chunk(content="a\n\nb") + chunk(reasoning_content="hm")
    + chunk(tool_calls=[{"index": 0}]) + chunk("stop") + USAGE + b"data: [DONE]\n\n"
)  # fmt: skip


def fed(*pieces: bytes, status: int = 200, kind: str = "text/event-stream; charset=utf-8") -> Answer:
    answer = Answer(keeps_text=True)
    answer.head(status, {"content-type": kind}, 1.0)
    for place, piece in enumerate(pieces):
        answer.feed(piece, 2.0 + place)
    return answer


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_bytes_may_be_cut_anywhere(cuts: list[int]) -> None:
    ends = sorted({0, len(WHOLE), *cuts})
    answer = fed(*(WHOLE[begin:end] for begin, end in pairwise(ends)))
    assert answer.problem() is None
    assert len(answer.output_s) == 3, "a role, an empty delta and the usage are no output"
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (7, 3, 4)
    assert ("".join(answer.text), answer.finish_reason, answer.id) == ("a\n\nb", "stop", "x1")


def test_lines_may_end_with_carriage_returns() -> None:
    assert fed(WHOLE.replace(b"\n\n", b"\r\n\r\n")).problem() is None


def test_the_first_token_is_the_first_that_could_be_seen() -> None:
    answer = fed(chunk(role="assistant", content=""), chunk(content="a"))
    assert (answer.first_byte_s, answer.output_s) == (1.0, [3.0])


def test_completions_carry_text() -> None:
    answer = fed(event({"choices": [{"index": 0, "text": "word"}]}), b"data: [DONE]\n\n")
    assert (answer.problem(), answer.text, answer.output_tokens) == (None, ["word"], 1)


def test_a_usage_that_lacks_a_count_counts_as_none_of_it() -> None:
    answer = fed(chunk(content="a") + chunk(content="b") + event({"choices": [], "usage": {"total_tokens": 9}}))
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (0, 2, 0)


def test_an_error_of_null_is_none() -> None:
    assert fed(event({"error": None, "choices": [{"delta": {"content": "a"}}]}) + b"data: [DONE]\n\n").problem() is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (fed(chunk(content="a")), "without [DONE]"),
        (fed(event({"error": {"message": "lost", "code": "engine_lost"}})), "engine_lost: lost"),
        (fed(b"data: nonsense\n\n"), "none of OpenAI's"),
        (fed(b'{"error": {"message": "full", "type": "overloaded"}}', status=503), "HTTP 503: overloaded: full"),
        (fed(b"<html>", status=502), "HTTP 502: <html>"),
        (fed(b"{}", kind="application/json"), "not a stream but application/json"),
    ],
)
def test_what_is_wrong_is_said(answer: Answer, problem: str) -> None:
    assert problem in str(answer.problem())
