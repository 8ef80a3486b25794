"""Engines that a test writes itself: any ASGI app, or one that answers with bytes the test chose."""

import asyncio
from collections.abc import Iterable

from serving.engine.base import EngineLoad, RequestContext, current_request
from serving.engine.scripted import Script, ScriptedEngine
from serving.protocol.asgi import AsgiApp, Message, Receive, Scope, Send


class AppEngine:
    """``Engine`` around an ASGI app."""

    def __init__(self, app: AsgiApp, max_model_len: int = 4096) -> None:
        self.app = app
        self.max_model_len = max_model_len
        self.dead = False
        self.draws_by_place = True
        self.gauges = EngineLoad()

    async def start(self) -> None:
        pass

    async def answer(self) -> None:
        pass

    async def stop(self) -> None:
        self.dead = True

    def load(self) -> EngineLoad:
        return self.gauges


class Recorder:
    """Answers every request with one JSON body and keeps what came in."""

    def __init__(self, answer: bytes = b"{}", status: int = 200) -> None:
        self.answer, self.status = answer, status
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.model_names: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        self.model_names.append((current_request.get(None) or RequestContext()).model_name)
        self.bodies.append((await receive())["body"])
        await start(send, self.status, b"application/json")
        await send({"type": "http.response.body", "body": self.answer})


class Events:
    """Streams the given bytes, one send each, then ends or, with ``holds``, waits to be released first."""

    def __init__(self, events: Iterable[bytes], holds: bool = False) -> None:
        self.events = list(events)
        self.release = asyncio.Event()
        self.is_at_hold = asyncio.Event()
        self.was_dropped = asyncio.Event()
        if not holds:
            self.release.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await start(send)
        for event in self.events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        self.is_at_hold.set()
        dropped = asyncio.ensure_future(receive())
        released = asyncio.ensure_future(self.release.wait())
        await asyncio.wait({dropped, released}, return_when=asyncio.FIRST_COMPLETED)
        released.cancel()
        if dropped.done():
            self.was_dropped.set()
            return
        dropped.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Flood:
    """Streams ``chunk`` until nobody takes it; ``sent_bytes`` is how much was taken, per request."""

    def __init__(self, chunk: bytes, max_chunks: int) -> None:
        self.chunk, self.max_chunks = chunk, max_chunks
        self.sent_bytes: list[int] = []
        self.num_dropped = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        index = len(self.sent_bytes)
        self.sent_bytes.append(0)
        await start(send)
        pumping = asyncio.ensure_future(self._pump(index, send))
        dropped = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({pumping, dropped}, return_when=asyncio.FIRST_COMPLETED)
            self.num_dropped += dropped.done()
        finally:
            pumping.cancel()
            dropped.cancel()

    async def _pump(self, index: int, send: Send) -> None:
        for _ in range(self.max_chunks):
            await send({"type": "http.response.body", "body": self.chunk, "more_body": True})
            self.sent_bytes[index] += len(self.chunk)
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def start(send: Send, status: int = 200, content_type: bytes = b"text/event-stream; charset=utf-8") -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})


class NeighbourEngine(ScriptedEngine):
    """A scripted engine with one more order: ``!neighbour`` streams a word every ``step_s`` until ``finish`` is set.

    ``num_requests`` counts all that reached the engine, ``num_words`` the neighbour's words.
    """

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self._step_s = script.step_s
        self.finish = asyncio.Event()
        self.num_requests = self.num_words = 0

    @property
    def app(self) -> AsgiApp:
        return self._route

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_requests += 1
        first = await receive()

        async def replayed() -> Message:
            nonlocal first
            message, first = first, {}
            return message or await receive()

        if b"!neighbour" in first["body"]:
            await self._stream_until_finish(send)
        else:
            await super().app(scope, replayed, send)

    async def _stream_until_finish(self, send: Send) -> None:
        await start(send)
        while not self.finish.is_set():
            event = b'data: {"word": %d}\n\n' % self.num_words
            self.num_words += 1
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(self._step_s)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
