"""A lean HTTP/1.1 client for streamed answers: one `asyncio.Protocol` per connection, kept alive between requests.

Times are taken first thing when bytes arrive. What a chunk costs here is in `benchmarks/results/generator.json`.
"""

import asyncio
import ssl
import time
from typing import cast

import httptools

from benchmarks.load.answer import Answer
from benchmarks.load.prompts import Endpoint
from benchmarks.load.target import Target

SLOW_READER_PAUSE_S = 0.1
"""How long a slow reader looks away after each read."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._ended: asyncio.Future[None] | None = None
        self._cancel_after = 0
        self._is_slow = False
        self._at_s = 0.0
        self._headers: dict[str, str] = {}
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    async def exchange(self, request: bytes, answer: Answer, cancel_after: int = 0, is_slow: bool = False) -> None:
        """Send ``request`` and fill ``answer``; returns when it has ended, whole or not.

        ``cancel_after`` output events the client hangs up (0: never). Cancelling this coroutine hangs up too.
        """
        assert self._transport is not None
        assert self._ended is None, "one request at a time"
        if not self.is_open:  # lost between being opened and being used
            answer.error = "connection lost: closed by the server"
            return
        self._answer, self._cancel_after, self._is_slow = answer, cancel_after, is_slow
        self._parser = httptools.HttpResponseParser(self)
        self._ended = asyncio.get_running_loop().create_future()
        answer.sent_s = time.monotonic()
        self._transport.write(request)
        try:
            await self._ended
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._answer = self._ended = None

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------------------- from asyncio

    def data_received(self, data: bytes) -> None:
        self._at_s = time.monotonic()
        answer = self._answer
        if answer is None:  # what nobody asked for: this connection is out of step
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            answer.error = answer.error or f"not HTTP: {error}"
            self._end(keeps=False)
            return
        if self._cancel_after and len(answer.output_s) >= self._cancel_after:
            self._end(keeps=False)
        elif self._is_slow and self._ended is not None and not self._ended.done():
            assert self._transport is not None
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(SLOW_READER_PAUSE_S, self._look_again)

    def _look_again(self) -> None:
        if self.is_open and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._ended is not None and not self._ended.done():
            assert self._answer is not None
            if not self._answer.is_done:
                self._answer.error = self._answer.error or f"connection lost: {exc or 'closed by the server'}"
            self._ended.set_result(None)

    # ----------------------------------------------------------------------------------------------- from httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._answer is not None
        self._answer.head(self._parser.get_status_code(), self._headers, self._at_s)
        self._headers = {}

    def on_body(self, body: bytes) -> None:
        assert self._answer is not None
        self._answer.feed(body, self._at_s)

    def on_message_complete(self) -> None:
        self._end(keeps=bool(self._parser.should_keep_alive()))

    def _end(self, keeps: bool) -> None:
        if not keeps:
            self.close()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


class Client:
    """Connections to one server: an idle one is taken again, else a new one is opened. Without ``keeps_alive`` each
    request has one of its own."""

    def __init__(self, target: Target, endpoint: Endpoint, *, keeps_alive: bool = True) -> None:
        self._target = target
        self._keeps_alive = keeps_alive
        self._head = target.head(endpoint, keeps_alive=keeps_alive)
        self._tls: ssl.SSLContext | None = target.tls()
        self._idle: list[Connection] = []

    async def ask(self, body: bytes, answer: Answer, cancel_after: int = 0, is_slow: bool = False) -> None:
        """Send one request; ``answer`` is filled, an error in it where the server cannot be reached."""
        try:
            connection = await self._connection()
        except OSError as error:
            answer.error = f"cannot connect: {error.strerror or error}"
            return
        request = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        await connection.exchange(request, answer, cancel_after, is_slow)
        if not self._keeps_alive:
            connection.close()
        elif connection.is_open:
            self._idle.append(connection)

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        loop = asyncio.get_running_loop()
        target = self._target
        _, connection = await loop.create_connection(Connection, target.host, target.port, ssl=self._tls)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
