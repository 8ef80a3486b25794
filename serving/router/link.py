"""A gateway's connection to one replica, and the streams multiplexed over it (``serving/protocol/frames.py``)."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol, cast

import orjson

from serving.errors import ReplicaLost
from serving.protocol.frames import (
    NO_USAGE,
    PROTOCOL_VERSION,
    Decoder,
    Failure,
    FrameError,
    Kind,
    Load,
    OpenHead,
    ResponseHead,
    Usage,
    cut_piece,
    encode,
    encode_open,
    prove,
    token_ids,
)

logger = logging.getLogger("ballast.router")

CONNECT_TIMEOUT_S = 5.0
RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.05, 2.0


class StreamFailed(Exception):
    """The replica is alive and says that this stream could not finish."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure["message"])
        self.failure = failure


class ReplicaStream:
    """One request on a replica: first ``head()``, then ``read()`` until it returns ``b""``, then ``usage``.

    Both raise ``ReplicaLost`` when the connection ends first and ``StreamFailed`` when the replica gives up. Unread
    bytes are bounded: over ``buffer_bytes`` the replica is told to pause, below half of it to go on.

    While ``sink`` is set, chunks go there as they arrive and ``read`` sees none of them.
    """

    __slots__ = (
        "_buffer_bytes", "_buffered_bytes", "_chunks", "_error", "_is_ended", "_is_paused", "_link", "_packed_ids",
        "_waiter", "id", "progressed_s", "response", "sink", "usage",
    )  # fmt: skip

    def __init__(self, link: "ReplicaLink", stream_id: int, buffer_bytes: int) -> None:
        self._link = link
        self.id = stream_id
        self._buffer_bytes = buffer_bytes
        self._buffered_bytes = 0
        self._chunks: list[bytes] = []
        self._packed_ids = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._is_ended = False
        self._is_paused = False
        self.response: ResponseHead | None = None
        self.sink: Callable[[bytes], None] | None = None
        self.usage: Usage = NO_USAGE
        self.progressed_s = 0.0
        """When the replica last said that tokens are made of which nothing is sent (``time.monotonic``)."""

    async def head(self) -> ResponseHead:
        while self.response is None:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self.response

    async def read(self) -> bytes:
        """Everything that has arrived since the last call, at least one chunk; ``b""`` at the end."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._is_ended:
                return b""
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._link.send(encode(Kind.RESUME, self.id))
        return data

    def wake(self) -> None:
        """Make a waiting ``head`` or ``read`` look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def interrupt(self, error: Exception) -> None:
        """Make ``head`` and ``read`` raise ``error`` from now on. The replica works on until ``finish``."""
        self._error = error
        self.wake()

    async def finish(self, timeout_s: float) -> Usage:
        """What the request has cost. If it still runs, nobody wants the rest: the replica is told, and has
        ``timeout_s`` to say.
        """
        if not self._is_ended:
            self._link.send(encode(Kind.CANCEL, self.id))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while not self._is_ended:
                        await self._wait()
        return self.usage

    @property
    def has_unread(self) -> bool:
        return bool(self._chunks)

    @property
    def token_ids(self) -> list[int]:
        """The tokens that what has arrived is made of, if the replica names them."""
        return token_ids(self._packed_ids)

    def on_piece(self, payload: bytes) -> None:
        packed, body = cut_piece(payload)
        self._packed_ids += packed
        self.on_body(body)

    def on_body(self, payload: bytes) -> None:
        if self.sink is not None:
            self.sink(payload)
            return
        self._chunks.append(payload)
        self._buffered_bytes += len(payload)
        if self._buffered_bytes > self._buffer_bytes and not self._is_paused:
            self._is_paused = True
            self._link.send(encode(Kind.PAUSE, self.id))
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def on_head(self, head: ResponseHead) -> None:
        self.response = head
        self.wake()

    def on_end(self, usage: Usage) -> None:
        self.usage = usage
        self._is_ended = True
        self.wake()

    def on_error(self, error: Exception) -> None:
        if isinstance(error, StreamFailed):
            self.usage = error.failure["usage"]
        self._error = error
        self._is_ended = True
        self.wake()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class LoadListener(Protocol):
    def __call__(self, load: Load) -> None: ...


class ReplicaLink:
    """Keeps one connection to a replica open while the replica is wanted, reconnecting with backoff.

    Args:
        address: ``unix:<path>`` or ``tcp:<host>:<port>``.
        replica: the id the peer must give, so that a reused address is noticed.
        secret: the cluster's shared secret.
    """

    def __init__(self, address: str, replica: str, secret: bytes) -> None:
        self.address = address
        self.replica = replica
        self._secret = secret
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, ReplicaStream] = {}
        self._next_id = 1
        self._outbox: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._is_accepted = self._was_accepted = False
        self._is_retired = False
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._on_load: LoadListener = lambda load: None
        self._on_change: Callable[[], None] = lambda: None

    def start(self, on_load: LoadListener, on_change: Callable[[], None]) -> None:
        self._on_load, self._on_change = on_load, on_change
        self._keeper = asyncio.create_task(self._keep_connected())

    @property
    def is_open(self) -> bool:
        return self._is_accepted

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def open(self, head: OpenHead, body: bytes, buffer_bytes: int) -> ReplicaStream:
        """Start a request. Raises ``ReplicaLost`` when there is no connection now."""
        if not self._is_accepted:
            raise ReplicaLost(f"replica {self.replica} is not connected")
        stream_id = self._next_id
        self._next_id = stream_id % 0xFFFFFFFF + 1
        stream = ReplicaStream(self, stream_id, buffer_bytes)
        self._streams[stream_id] = stream
        self.send(encode_open(stream_id, head, body))
        return stream

    def send(self, frame: bytes) -> None:
        """Queue a frame; everything queued in this event-loop turn leaves in one write."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(frame)

    def retire(self) -> None:
        """The replica is no longer wanted: let open streams end, then close."""
        self._is_retired = True
        if not self._streams:
            self.close()

    def abort(self) -> None:
        """Give up the connection as it is: its streams are lost; a new one is tried."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self._is_retired = True
        if self._keeper is not None:
            self._keeper.cancel()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._outbox))
        self._outbox.clear()

    async def _keep_connected(self) -> None:
        delay_s = RECONNECT_FIRST_S
        while not self._is_retired:
            try:
                await asyncio.wait_for(self._connect(), CONNECT_TIMEOUT_S)
                await self._lost.wait()
                if self._was_accepted:
                    delay_s = RECONNECT_FIRST_S
            except (OSError, TimeoutError) as error:
                logger.info("replica %s cannot be reached: %s", self.replica, error)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RECONNECT_MAX_S)

    async def _connect(self) -> None:
        self._lost.clear()
        self._was_accepted = False
        scheme, _, rest = self.address.partition(":")
        if scheme == "unix":
            await self._loop.create_unix_connection(lambda: _LinkProtocol(self), rest)
        else:
            host, _, port = rest.rpartition(":")
            await self._loop.create_connection(lambda: _LinkProtocol(self), host, int(port))

    def on_connected(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def on_lost(self) -> None:
        self._transport = None
        self._is_accepted = False
        self._lost.set()
        error = ReplicaLost(f"the connection to replica {self.replica} was lost")
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.on_error(error)
        self._on_change()

    def on_frame(self, kind: int, stream_id: int, payload: bytes) -> None:
        if kind == Kind.LOAD:
            self._on_load(orjson.loads(payload))
        elif kind == Kind.CHALLENGE:
            self._answer(payload)
        elif kind == Kind.ACCEPTED:
            self._is_accepted = self._was_accepted = True
            self._on_change()
        elif stream := self._streams.get(stream_id):
            if kind == Kind.HEAD:
                stream.on_head(orjson.loads(payload))
            elif kind == Kind.PROGRESS:
                stream.progressed_s = time.monotonic()
            elif kind == Kind.END:
                del self._streams[stream_id]
                stream.on_end(orjson.loads(payload))
            elif kind == Kind.FAIL:
                del self._streams[stream_id]
                stream.on_error(StreamFailed(orjson.loads(payload)))
            if self._is_retired and not self._streams:
                self.close()

    def _answer(self, payload: bytes) -> None:
        challenge = orjson.loads(payload)
        if challenge["version"] != PROTOCOL_VERSION or challenge["replica"] != self.replica:
            raise FrameError(f"expected replica {self.replica}, protocol {PROTOCOL_VERSION}; the peer says {challenge}")
        self.send(encode(Kind.PROOF, 0, prove(self._secret, challenge["nonce"])))

    @property
    def streams(self) -> dict[int, ReplicaStream]:
        return self._streams


_BODY, _PIECE = int(Kind.BODY), int(Kind.PIECE)
"""An enum's member is looked up through its metaclass, and these are asked for per chunk."""


class _LinkProtocol(asyncio.Protocol):
    """Bytes in, frames to the link. PIECE and BODY are looked at first: they are nearly all there is."""

    def __init__(self, link: ReplicaLink) -> None:
        self._link = link
        self._decoder = Decoder()
        self._streams = link.streams
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._link.on_connected(self._transport)

    def data_received(self, data: bytes) -> None:
        streams = self._streams
        try:
            for kind, stream_id, payload in self._decoder.feed(data):
                if kind == _PIECE:
                    stream = streams.get(stream_id)
                    if stream is not None:
                        stream.on_piece(payload)
                elif kind == _BODY:
                    stream = streams.get(stream_id)
                    if stream is not None:
                        stream.on_body(payload)
                else:
                    self._link.on_frame(kind, stream_id, payload)
        except (FrameError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            logger.warning("closing the connection to replica %s: %s", self._link.replica, error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.on_lost()
