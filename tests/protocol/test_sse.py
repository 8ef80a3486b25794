"""Server-sent events."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.protocol.sse import DONE, KEEP_ALIVE, EventDecoder, event

LINE = st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40)
EVENTS = st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=8)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def encoded(events: list[list[str]], end: str) -> bytes:
    """Each event as its data lines, with a comment and another field in between."""
    text = "".join(
        f": a comment{end}event: x{end}" + "".join(f"data: {line}{end}" for line in lines) + end for lines in events
    )
    return text.encode()


def decoded(pieces: list[bytes]) -> list[bytes]:
    decoder = EventDecoder()
    return [data for piece in pieces for data in decoder.feed(piece)]


@given(events=EVENTS, end=ENDS, cuts=st.lists(st.integers(0, 10**6), max_size=20))
def test_events_survive_any_cut_and_any_line_end(events: list[list[str]], end: str, cuts: list[int]) -> None:
    data = encoded(events, end) + b"\n"  # whatever ends the last CR, so that it is not held back
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
    assert decoded(pieces) == ["\n".join(lines).encode() for lines in events]


@given(events=EVENTS, end=ENDS)
def test_events_survive_byte_by_byte(events: list[list[str]], end: str) -> None:
    data = encoded(events, end) + b"\n"
    assert decoded([bytes([byte]) for byte in data]) == decoded([data])


@pytest.mark.parametrize("data", [b"data:x\n\n", b"data: x\n\n", b"data: x\r\r\n", b"\n\ndata: x\n\n"])
def test_one_space_after_the_colon_is_not_data(data: bytes) -> None:
    assert decoded([data]) == [b"x"]


def test_a_second_space_is_data() -> None:
    assert decoded([b"data:  x\n\n"]) == [b" x"]


def test_comments_and_other_fields_are_dropped() -> None:
    assert decoded([KEEP_ALIVE, b"id: 1\nretry: 5\n\n", KEEP_ALIVE, DONE]) == [b"[DONE]"]


def test_an_unfinished_event_yields_nothing() -> None:
    assert decoded([b"data: x\n"]) == []


@given(value=st.recursive(st.text() | st.integers(-(2**53), 2**53) | st.none() | st.booleans(), st.lists, max_leaves=8))
def test_an_event_is_one_line_of_json(value: object) -> None:
    [data] = decoded([event(value)])
    assert json.loads(data) == value
    assert b"\n" not in data


def test_an_event_may_have_a_name() -> None:
    assert event({"a": 1}, "error") == b'event: error\ndata: {"a":1}\n\n'
