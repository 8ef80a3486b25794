"""Request bodies: what is taken as JSON, and that nothing else comes out of bad bytes than InvalidJson."""

import contextlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config.limits import Limits
from serving.errors import InvalidJson
from serving.gateway.json_body import parse, serialise

LIMITS = Limits()
FOUR_MB = 4 * 2**20

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def has_nul(data: bytes) -> bool:
    return rb"\u0000" in data.replace(rb"\\", b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "zero-length", id="empty"),
        pytest.param(b'{"model": }', "line 1 column 11", id="malformed"),
        pytest.param(b'{"a": 1', "unexpected end", id="cut off"),
        pytest.param(b"{} {}", "column 4", id="two documents"),
        pytest.param(b"[1, 2]", "must be an object", id="array"),
        pytest.param(b'"text"', "must be an object", id="string"),
        pytest.param(b"3", "must be an object", id="number"),
        pytest.param(b"null", "must be an object", id="null"),
        pytest.param(b'{"a": NaN}', "column 7", id="NaN"),
        pytest.param(b'{"a": -Infinity}', "column", id="Infinity"),
        pytest.param(b'{"a": 1e999}', "infinity", id="overflowing float"),
        pytest.param(b'{"a": "\xff\xfe"}', "UTF-8", id="invalid UTF-8"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', "UTF-8", id="surrogate as UTF-8"),
        pytest.param(b'{"a": "\\ud800"}', "surrogate", id="lone surrogate"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', "byte order mark", id="byte order mark"),
        pytest.param('{"a": 1}'.encode("utf-16"), "column", id="UTF-16"),
        pytest.param(b'{"a": "x\x00y"}', "control character", id="raw NUL"),
        pytest.param(b'{"a": {"b": [1, "x\\u0000y"]}}', "U+0000", id="escaped NUL"),
        pytest.param(b'{"a\\u0000": 1}', "U+0000", id="NUL in a key"),
        pytest.param(b'{"a": 1, "a": 2}', "'a' twice", id="duplicate key"),
        pytest.param(b'{"x": [{"a": 1, "\\u0061": 2}]}', "'a' twice", id="duplicate key, one escaped"),
        pytest.param(b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "arrays", id="50,000 deep"),
        pytest.param(b'{"a": ' + b"[" * 2_000 + b"]" * 2_000 + b"}", "depth", id="2,000 deep"),
        pytest.param(b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "deeper than 100", id="over the depth cap"),
        pytest.param(b'{"a": [' + b"1," * 250_000 + b"1]}", "more than 250000 values", id="too many values"),
        pytest.param(b'{"a": [' + b"{}," * 60_000 + b"1]}", "objects, arrays and keys", id="too many objects"),
        pytest.param(b'{"a": ["' + b'",""' * 700_000 + b"]}", "more than 250000", id="too many strings"),
    ],
)
def test_what_is_not_taken_is_refused_with_what_and_where(data: bytes, says: str) -> None:
    with pytest.raises(InvalidJson) as caught:
        parse(data, LIMITS)
    assert says in caught.value.message
    assert caught.value.answer.status == 400


def test_a_nul_is_placed_by_its_path() -> None:
    with pytest.raises(InvalidJson) as caught:
        parse(b'{"messages": [{"content": "x\\u0000"}]}', LIMITS)
    assert caught.value.param == "messages[0].content"


@pytest.mark.parametrize(
    "text", ['a,b[c{d:e"f\\g', "\\u0000 spelt out", '\\\\"', ":" * 100, "{" * 300_000, '"' * 300_000]
)
def test_punctuation_inside_strings_counts_for_nothing(text: str) -> None:
    body = {"messages": [{"content": text, text[:50]: text}]}
    assert parse(orjson.dumps(body), LIMITS) == body


def test_the_depth_cap_itself_is_taken() -> None:
    parse(b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}", LIMITS)


def test_a_body_is_never_quoted() -> None:
    """Exceptions reach logs, and a foreign one that carried the body would take it along."""
    with pytest.raises(InvalidJson) as caught:
        parse(b'{"secret": "canary-7f3a" ', LIMITS)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0d8 1ae-.', max_size=60).map(str.encode))
def test_any_bytes_give_an_object_or_invalid_json(data: bytes) -> None:
    try:
        body = parse(data, LIMITS)
    except InvalidJson:
        return
    assert body == orjson.loads(data)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_written_object_is_read_back(body: dict[str, object]) -> None:
    data = serialise(body)
    if not has_nul(data):
        assert parse(data, LIMITS) == body


@given(st.dictionaries(st.text(min_size=1), JSON, min_size=1, max_size=5), st.data())
def test_a_repeated_key_is_always_found(body: dict[str, object], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(body)))
    written = serialise(body)
    if has_nul(written):
        return
    repeated = written[:-1] + b"," + orjson.dumps(key) + b":1}"
    with pytest.raises(InvalidJson, match="twice"):
        parse(repeated, LIMITS)


@pytest.mark.parametrize(
    ("data", "is_built"),
    [
        pytest.param(b"[" * FOUR_MB, False, id="depth"),
        pytest.param(b'{"a":[' + b"[]," * (FOUR_MB // 3) + b"1]}", False, id="arrays"),
        pytest.param(b'{"a":[' + b'{"":1},' * (FOUR_MB // 7) + b"1]}", False, id="objects"),
        pytest.param(b'{"a":[' + b'"",' * (FOUR_MB // 3) + b"1]}", False, id="strings"),
        pytest.param(b'{"a":[' + b"123456789012345," * 249_000 + b"1]}", True, id="numbers up to the cap"),
        pytest.param(b"{" + b'"a":1,' * (FOUR_MB // 6) + b'"a":1}', False, id="one key again and again"),
        pytest.param(b'{"a":"' + b'\\"' * (FOUR_MB // 2) + b'"}', True, id="escapes"),
        pytest.param(b'{"a":1.' + b"9" * FOUR_MB + b"}", True, id="a long number"),
        pytest.param(b'{"a":"' + b"," * FOUR_MB + b'"}', True, id="commas in a string"),
    ],
)
def test_of_four_hostile_megabytes_nothing_is_built_that_holds_the_event_loop(
    data: bytes, is_built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would take seconds to build is refused by counting; the rest is one string, one number or a bounded list."""
    built: list[bytes] = []
    loads = orjson.loads

    def recorded(text: bytes) -> object:
        built.append(text)
        return loads(text)

    monkeypatch.setattr("serving.gateway.json_body.orjson.loads", recorded)
    with contextlib.nullcontext() if is_built else pytest.raises(InvalidJson) as refused:
        parse(data, LIMITS)
    assert len(built) == is_built
    assert refused is None or refused.value.code == "json_too_large"
