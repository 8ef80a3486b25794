"""The gateway–replica wire's framing."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.protocol.frames import (
    HEADER,
    MAX_FRAME_BYTES,
    PROOF_BYTES,
    Decoder,
    FrameError,
    Kind,
    OpenHead,
    cut_piece,
    decode_open,
    encode,
    encode_open,
    piece,
    prove,
    token_ids,
)

FRAMES = st.lists(
    st.tuples(st.sampled_from(list(Kind)), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=20
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` in pieces, cut at the given places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(frames=FRAMES, cuts=st.lists(st.integers(0, 10**6), max_size=30))
def test_frames_survive_any_cut(frames: list[tuple[Kind, int, bytes]], cuts: list[int]) -> None:
    decoder = Decoder()
    data = b"".join(encode(*frame) for frame in frames)
    assert [frame for piece in split(data, cuts) for frame in decoder.feed(piece)] == frames


@given(frames=FRAMES)
def test_frames_survive_byte_by_byte(frames: list[tuple[Kind, int, bytes]]) -> None:
    decoder = Decoder()
    data = b"".join(encode(*frame) for frame in frames)
    assert [frame for byte in data for frame in decoder.feed(bytes([byte]))] == frames


def test_an_unfinished_frame_yields_nothing() -> None:
    decoder = Decoder()
    frame = encode(Kind.BODY, 1, b"x" * 100)
    assert list(decoder.feed(frame[:-1])) == []
    assert list(decoder.feed(frame[-1:])) == [(Kind.BODY, 1, b"x" * 100)]


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_an_oversized_frame_is_refused_at_its_header(length: int) -> None:
    with pytest.raises(FrameError, match="exceeds"):
        list(Decoder().feed(HEADER.pack(length, 1, Kind.BODY)))


def test_frames_before_an_oversized_one_are_delivered() -> None:
    decoder = Decoder(max_frame_bytes=10)
    feed = decoder.feed(encode(Kind.BODY, 1, b"ok") + encode(Kind.BODY, 1, b"x" * 11))
    assert next(feed) == (Kind.BODY, 1, b"ok")
    with pytest.raises(FrameError):
        next(feed)


def test_the_limit_can_be_raised_between_two_frames_of_one_read() -> None:
    """A replica raises it when the proof, which may come together with the first request, has been checked."""
    decoder = Decoder(max_frame_bytes=PROOF_BYTES)
    kinds = []
    for kind, _, _ in decoder.feed(encode(Kind.PROOF, 0, b"p" * PROOF_BYTES) + encode(Kind.OPEN, 1, b"x" * 1000)):
        kinds.append(kind)
        decoder.max_frame_bytes = MAX_FRAME_BYTES
    assert kinds == [Kind.PROOF, Kind.OPEN]


@given(
    path=st.text(),
    request_id=st.text(),
    model=st.text(),
    body=st.binary(max_size=500),
    stream=st.integers(1, 2**32 - 1),
)
def test_an_open_frame_carries_head_and_body_verbatim(
    path: str, request_id: str, model: str, body: bytes, stream: int
) -> None:
    head: OpenHead = {
        "method": "POST", "path": path, "request_id": request_id, "model": model,
        "created": 1, "continuable": True, "resume": [1, 2],
    }  # fmt: skip
    [(kind, stream_id, payload)] = Decoder().feed(encode_open(stream, head, body))
    assert (kind, stream_id) == (Kind.OPEN, stream)
    assert decode_open(payload) == (head, body)


@given(ids=st.lists(st.integers(0, 2**32 - 1), max_size=300), body=st.binary(max_size=500))
def test_a_piece_carries_token_ids_and_bytes(ids: list[int], body: bytes) -> None:
    [(kind, stream_id, payload)] = Decoder().feed(piece(7, ids, body))
    assert (kind, stream_id) == (Kind.PIECE, 7)
    packed, rest = cut_piece(payload)
    assert (token_ids(packed), rest) == (ids, body)


def test_a_header_is_nine_bytes_big_endian() -> None:
    assert encode(Kind.BODY, 258, b"abc") == struct.pack("!IIB", 3, 258, 21) + b"abc"
    assert len(encode(Kind.CANCEL, 1)) == 9


def test_a_proof_depends_on_secret_and_nonce() -> None:
    proofs = {prove(secret, nonce) for secret in (b"a" * 32, b"b" * 32) for nonce in ("n1", "n2")}
    assert len(proofs) == 4
    assert {len(proof) for proof in proofs} == {PROOF_BYTES}
