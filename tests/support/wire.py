"""HTTP by hand over a raw socket, for what no well-behaved client sends, and a client that can read as slowly as it
likes.
"""

import asyncio
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

GUARD_S = 10.0
"""No test waits longer than this for anything; it is never slept."""


@dataclass(frozen=True)
class Answer:
    """A whole response. ``headers`` in lower case; of repeated ones the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int, receive_buffer_bytes: int | None = None, limit_bytes: int = 2**16) -> Self:
        connection = socket.socket()
        connection.setblocking(False)
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=connection, limit=limit_bytes))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(GUARD_S):
            await self._writer.drain()

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        await self.send(post(path, body, headers))

    async def read_head(self) -> Answer:
        """Status line and headers; the body is left to read."""
        async with asyncio.timeout(GUARD_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(first.split()[1]), headers, b"")

    async def answer(self, *, is_head: bool = False) -> Answer:
        """A whole response."""
        head = await self.read_head()
        if is_head:
            return head
        async with asyncio.timeout(GUARD_S):
            if head.headers.get("transfer-encoding") == "chunked":
                return Answer(head.status, head.headers, b"".join([chunk async for chunk in self.chunks()]))
            length = head.headers.get("content-length")
            body = await (self.reader.read() if length is None else self.reader.readexactly(int(length)))
        return Answer(head.status, head.headers, body)

    async def chunks(self):  # type: ignore[no-untyped-def]
        """The chunks of a chunked body. Raises IncompleteReadError when it is cut off."""
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size + 2)
            if size == 0:
                return
            yield data[:-2]

    async def read_until(self, marker: bytes) -> bytes:
        async with asyncio.timeout(GUARD_S):
            return await self.reader.readuntil(marker)

    async def until_closed(self) -> bytes:
        """All that still comes before the server closes. A reset, the answer to what we went on sending, is an end
        too.
        """
        async with asyncio.timeout(GUARD_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(GUARD_S):
                await self._writer.wait_closed()
        except OSError:
            pass  # the server was quicker

    def abort(self) -> None:
        """Vanish, as a client that is killed does."""
        self._writer.transport.abort()


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A POST request's bytes."""
    fields = {
        "host": "ballast",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def get(path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"host": "ballast", **(headers or {})}.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
