"""Either end of the gateway–replica wire, played by a test frame by frame."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from serving.protocol.frames import (
    HEADER,
    PROTOCOL_VERSION,
    Kind,
    Load,
    OpenHead,
    encode,
    encode_json,
    encode_open,
    prove,
)
from tests.support.stack import SECRET
from tests.support.wire import GUARD_S

IDLE: Load = {
    "running": 0, "waiting": 0, "kv_cache_usage": 0.0, "kv_tokens": 0.0, "tokens_per_s": 0.0, "iterations": 0,
    "standstill_s": 0.0, "draining": False, "streams": 0, "pending_prompt_tokens": 0, "work": (0.0, 0.0, 0.0, 0.0, 0.0),
    "speed": (0.001, 0.0, 0.0, 1e-6), "max_num_seqs": 64, "max_num_batched_tokens": 2048, "kv_capacity_tokens": 100_000,
}  # fmt: skip
USAGE = {"prompt_tokens": 1, "cached_tokens": 0, "output_tokens": 2, "finish_reason": "stop"}


class Peer:
    """Frames in and out of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        self.writer.write(encode(kind, stream, payload))

    def send_json(self, kind: int, stream: int, value: object) -> None:
        self.writer.write(encode_json(kind, stream, value))

    async def read(self) -> tuple[Kind, int, bytes]:
        """The next frame. Raises IncompleteReadError when the other end closed."""
        async with asyncio.timeout(GUARD_S):
            length, stream, kind = HEADER.unpack(await self.reader.readexactly(HEADER.size))
            return Kind(kind), stream, await self.reader.readexactly(length)

    async def read_kind(self, *wanted: Kind) -> tuple[Kind, int, bytes]:
        """The next frame of these kinds; others are dropped."""
        while True:
            frame = await self.read()
            if frame[0] in wanted:
                return frame

    async def is_closed(self) -> bool:
        """True once the other end has closed; what still comes is dropped."""
        async with asyncio.timeout(GUARD_S):
            with suppress(ConnectionError):
                await self.reader.read()
        return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


class GatewayPeer(Peer):
    """A gateway's end."""

    @classmethod
    async def connect(cls, path: Path) -> Self:
        return cls(*await asyncio.open_unix_connection(path))

    @classmethod
    async def accepted(cls, path: Path, secret: bytes = SECRET) -> Self:
        peer = await cls.connect(path)
        _, _, challenge = await peer.read_kind(Kind.CHALLENGE)
        peer.send(Kind.PROOF, 0, prove(secret, json.loads(challenge)["nonce"]))
        await peer.read_kind(Kind.ACCEPTED)
        return peer

    def open(self, stream: int, body: object = None, path: str = "/v1/chat/completions") -> None:
        head: OpenHead = {
            "method": "POST", "path": path, "request_id": f"req-{stream}", "model": "demo",
            "created": 0, "continuable": False, "resume": [],
        }  # fmt: skip
        self.writer.write(encode_open(stream, head, json.dumps(body or {}).encode()))

    async def read_end(self) -> tuple[Kind, int, Any]:
        """The next END or FAIL, decoded."""
        kind, stream, payload = await self.read_kind(Kind.END, Kind.FAIL)
        return kind, stream, json.loads(payload)


class ReplicaPeer(Peer):
    """A replica's end of one connection."""

    async def accept(self, name: str = "r0", secret: bytes = SECRET) -> None:
        self.send_json(Kind.CHALLENGE, 0, {"version": PROTOCOL_VERSION, "replica": name, "nonce": "n"})
        _, _, proof = await self.read_kind(Kind.PROOF)
        assert proof == prove(secret, "n")
        self.send(Kind.ACCEPTED)

    def load(self, **values: object) -> None:
        self.send_json(Kind.LOAD, 0, IDLE | values)  # type: ignore[operator]

    def head(self, stream: int, status: int = 200, content_type: str = "text/event-stream") -> None:
        self.send_json(Kind.HEAD, stream, {"status": status, "content_type": content_type})

    def end(self, stream: int) -> None:
        self.send_json(Kind.END, stream, USAGE)

    def fail(self, stream: int, message: str = "broke", *, engine_dead: bool = False) -> None:
        self.send_json(Kind.FAIL, stream, {"message": message, "engine_dead": engine_dead, "usage": USAGE})


class FakeReplica:
    """Listens like a replica and hands each connection to the test."""

    def __init__(self) -> None:
        self._connections: asyncio.Queue[ReplicaPeer] = asyncio.Queue()
        self.num_connections = 0

    async def connection(self) -> ReplicaPeer:
        async with asyncio.timeout(GUARD_S):
            return await self._connections.get()

    async def accepted(self, name: str = "r0") -> ReplicaPeer:
        peer = await self.connection()
        await peer.accept(name)
        return peer

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._connections.put_nowait(ReplicaPeer(reader, writer))


@asynccontextmanager
async def fake_replica(path: Path) -> AsyncIterator[FakeReplica]:
    replica = FakeReplica()
    writers: list[asyncio.StreamWriter] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await replica.on_connection(reader, writer)

    server = await asyncio.start_unix_server(on_connection, path)
    try:
        yield replica
    finally:
        server.close()
        for writer in writers:
            writer.close()
