"""The gateway–replica wire: many request streams over one connection, each message a frame.

A frame is a 9-byte header and a payload::

    length  u32   bytes of payload
    stream  u32   request stream; 0 is the connection itself
    kind    u8    ``Kind``

Numbers are big-endian. Who may send what:

    replica → gateway   CHALLENGE (0)  ACCEPTED (0)  LOAD (0)  HEAD  BODY  PIECE  PROGRESS  END  FAIL
    gateway → replica   PROOF (0)      OPEN  CANCEL  PAUSE  RESUME

A connection begins with CHALLENGE (``Challenge``: a nonce), PROOF (HMAC-SHA256 of the nonce under the cluster's
secret) and ACCEPTED. After that the gateway opens streams with ids of its own choosing; a stream ends with exactly
one END or FAIL. PIECE is BODY with the ids of the tokens that it is made of (``piece``), so that another replica can
go on where this one ends. PROGRESS, empty, says that tokens are made of which nothing is sent (reasoning that the
client does not want). Writers collect the frames of one event-loop turn and flush them as one write: under load
that is one system call per engine step instead of one per stream (measured: design notes, "Why one multiplexed
connection").
"""

import enum
import hmac
import struct
from collections.abc import Iterator
from typing import Literal, NotRequired, TypedDict

import orjson

HEADER = struct.Struct("!IIB")
PROTOCOL_VERSION = 4
#: Larger than any request body the gateway lets through; a longer frame is a broken or hostile peer.
MAX_FRAME_BYTES = 64 * 1024 * 1024
PROOF_BYTES = 32
_ONE_TOKEN = struct.Struct("<HI")


class Kind(enum.IntEnum):
    """What a frame carries."""

    CHALLENGE = 1
    PROOF = 2
    ACCEPTED = 3
    LOAD = 4
    OPEN = 10
    CANCEL = 11
    PAUSE = 12
    RESUME = 13
    HEAD = 20
    BODY = 21
    END = 22
    FAIL = 23
    PIECE = 24
    PROGRESS = 25


class Challenge(TypedDict):
    """First frame of a connection, replica → gateway."""

    version: int
    replica: str
    nonce: str


class OpenHead(TypedDict):
    """Head of an OPEN frame; the request body follows it verbatim.

    ``created`` is what the answer says of its time (Unix seconds), the same on every replica that works on it. With
    ``continuable`` the replica sends PIECEs if it can; ``resume`` holds the tokens that an earlier replica has sent,
    and the answer goes on after them. ``is_seeded``: it is drawn from a seed of the client's, and can go on only where
    a token depends on seed and place alone. ``is_constrained``: the engine will make a grammar of something in the
    body. ``prompt_tokens`` is the gateway's estimate: until the answer begins the replica reports it as pending.
    """

    method: str
    path: str
    request_id: str
    model: str
    created: int
    continuable: bool
    resume: list[int]
    is_seeded: NotRequired[bool]
    is_constrained: NotRequired[bool]
    prompt_tokens: NotRequired[int]


class ResponseHead(TypedDict):
    """HEAD frame: status line, the one header the gateway forwards, and whether another replica could go on."""

    status: int
    content_type: str
    continuable: bool


class Usage(TypedDict):
    """What a request cost, counted where the tokens are made; sent in END and FAIL."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str | None


Cause = Literal["engine_dead", "engine_failed", "draining", "request"]


class Failure(TypedDict):
    """FAIL frame: the stream could not finish. ``message`` is safe to show to a client; ``cause`` says whether the same
    request may be well elsewhere."""

    message: str
    cause: Cause
    usage: Usage


StepSpeed = tuple[float, float, float, float]
"""What an engine step costs, in seconds: in itself, per sequence, per token in the KV cache, per prompt token."""

WorkDone = tuple[float, float, float, float, float]
"""What an engine has done since it started: steps, prompt tokens, output tokens, tokens in the KV cache summed over
steps, and seconds in steps."""


class Load(TypedDict):
    """LOAD frame: what a replica says about itself, several times a second.

    ``standstill_s`` is for how long its engine has had work and taken no step, in seconds. ``streams`` counts those of
    all gateways, ``pending_prompt_tokens`` the prompts of those whose answer has not begun. The last five are what its
    engine has done, its measured speed, and its bounds.
    """

    running: int
    waiting: int
    kv_cache_usage: float
    kv_tokens: float
    tokens_per_s: float
    iterations: int
    standstill_s: float
    draining: bool
    streams: int
    pending_prompt_tokens: int
    work: WorkDone
    speed: StepSpeed
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: int


NO_WORK: WorkDone = (0.0, 0.0, 0.0, 0.0, 0.0)
NO_USAGE: Usage = {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "finish_reason": None}


class FrameError(ValueError):
    """The peer sent something that is not this protocol."""


def encode(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), stream, kind) + payload


def encode_json(kind: int, stream: int, value: object) -> bytes:
    return encode(kind, stream, orjson.dumps(value))


def piece(stream: int, token_ids: list[int], body: bytes) -> bytes:
    """A PIECE frame: a u16 count, so many u32 token ids (both little-endian), and the bytes of the answer."""
    count = len(token_ids)
    if count == 1:
        return HEADER.pack(6 + len(body), stream, Kind.PIECE) + _ONE_TOKEN.pack(1, token_ids[0]) + body
    return encode(Kind.PIECE, stream, struct.pack(f"<H{count}I", count, *token_ids) + body)


def cut_piece(payload: bytes) -> tuple[bytes, bytes]:
    """The ids of a PIECE, as bytes for ``token_ids``, and its part of the answer."""
    end = 2 + 4 * (payload[0] | payload[1] << 8)
    return payload[2:end], payload[end:]


def token_ids(packed: bytes | bytearray) -> list[int]:
    return list(struct.unpack(f"<{len(packed) // 4}I", packed))


def encode_open(stream: int, head: OpenHead, body: bytes) -> bytes:
    return encode(Kind.OPEN, stream, orjson.dumps(head) + b"\n" + body)


def decode_open(payload: bytes) -> tuple[OpenHead, bytes]:
    head, _, body = payload.partition(b"\n")
    return orjson.loads(head), body


def prove(secret: bytes, nonce: str) -> bytes:
    """The answer to a challenge: HMAC-SHA256 over the protocol version and nonce, ``PROOF_BYTES`` long."""
    return hmac.digest(secret, f"ballast/{PROTOCOL_VERSION}/{nonce}".encode(), "sha256")


class Decoder:
    """Cuts a byte stream into frames; keeps an unfinished tail between calls."""

    __slots__ = ("_tail", "max_frame_bytes")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._tail = b""
        self.max_frame_bytes = max_frame_bytes

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield ``(kind, stream, payload)`` for each frame that ``data`` completes.

        Raises ``FrameError`` at a frame over ``max_frame_bytes``.
        """
        if self._tail:
            data = self._tail + data
        position, end, header = 0, len(data), HEADER.size
        while end - position >= header:
            length, stream, kind = HEADER.unpack_from(data, position)
            if length > self.max_frame_bytes:
                raise FrameError(f"frame of {length} bytes exceeds {self.max_frame_bytes}")
            start = position + header
            if end - start < length:
                break
            position = start + length
            yield kind, stream, data[start:position]
        self._tail = data[position:]
