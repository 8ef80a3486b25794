"""A server that does nothing but answer: canned chunks over HTTP, as cheaply as Python can.

``python -m benchmarks.load.null_server --port 9000``. It shows what the generator itself is capable of, and has known
latencies for the tests of what measures them: time to the first chunk, time per chunk, and freezes.

Every chunk is a write of its own, and so a packet and a read of its own unless the kernel puts some together.
"""

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import httptools
import orjson
import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"x-request-id: null-%d\r\n\r\n"
)
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model"}]}'
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


@dataclass(frozen=True, slots=True)
class Manners:
    """How it answers.

    ``first_s`` until the first chunk, ``step_s`` between two of a stream. Or ``engine_step_s``: as an engine does it,
    each step writes a chunk to every stream. ``jitter``: sigma of the log-normal factor on each time of waiting.
    ``num_slots`` requests are answered at once, the others wait in line (0: all at once). ``refused_every``-th request
    gets a 503 (0: none). ``freeze_at_s`` after the first request it does nothing at all for ``freeze_s``.
    """

    first_s: float = 0.0
    step_s: float = 0.0
    engine_step_s: float = 0.0
    jitter: float = 0.0
    num_slots: int = 0
    refused_every: int = 0
    freeze_at_s: float = 0.0
    freeze_s: float = 0.0


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _event(content: str | None, finish: str | None, usage: dict[str, int] | None = None) -> bytes:
    delta = {"content": content} if content is not None else {}
    choices = [] if usage else [{"index": 0, "delta": delta, "text": content or "", "finish_reason": finish}]
    value = {"id": "null", "object": "chat.completion.chunk", "created": 1, "model": "null", "choices": choices}
    return b"data: " + orjson.dumps(value | ({"usage": usage} if usage else {})) + b"\n\n"


_WORD = _chunk(_event("word ", None))


def _ending(prompt_tokens: int, num_chunks: int) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": num_chunks,
             "total_tokens": prompt_tokens + num_chunks}  # fmt: skip
    return b"".join([
        _chunk(_event(None, "length")), _chunk(_event(None, None, usage)), _chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n",
    ])  # fmt: skip


class NullServer:
    """What all connections share."""

    def __init__(self, manners: Manners = Manners()) -> None:
        self.manners = manners
        self.num_requests = 0
        self._num_busy = 0
        self._line: list[asyncio.Future[None]] = []
        self._server: asyncio.Server | None = None
        self._is_frozen = False
        self._streams: list[_Answering] = []

    async def listen(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """The port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Answering(self), host, port, backlog=4096)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def came(self) -> int:
        """A request is here; returns its number, from 1."""
        self.num_requests += 1
        manners = self.manners
        if manners.freeze_s and not self._is_frozen:
            self._is_frozen = True
            # Blocks this whole process on purpose, as a garbage collection or a stuck kernel would.
            asyncio.get_running_loop().call_later(manners.freeze_at_s, time.sleep, manners.freeze_s)
        return self.num_requests

    def factor(self) -> float:
        """What the next time of waiting is multiplied with."""
        return random.lognormvariate(0.0, self.manners.jitter) if self.manners.jitter else 1.0

    def join(self, stream: "_Answering") -> None:
        """``stream`` gets a chunk with each engine step from now on, until it has ended."""
        self._streams.append(stream)
        if len(self._streams) == 1:
            loop = asyncio.get_running_loop()
            loop.call_later(self.manners.engine_step_s, self._step, loop.time() + self.manners.engine_step_s)

    def _step(self, due_s: float) -> None:
        self._streams = [stream for stream in self._streams if stream.advance()]
        if self._streams:
            loop = asyncio.get_running_loop()
            due_s = max(due_s + self.manners.engine_step_s, loop.time())
            loop.call_later(due_s - loop.time(), self._step, due_s)

    async def take_slot(self) -> None:
        if self.manners.num_slots and self._num_busy >= self.manners.num_slots:
            turn = asyncio.get_running_loop().create_future()
            self._line.append(turn)
            await turn
        self._num_busy += 1

    def give_slot(self) -> None:
        self._num_busy -= 1
        while self._line:
            if not (turn := self._line.pop(0)).done():
                turn.set_result(None)
                return


class _Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: NullServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._url = b""
        self._left = 0
        self._ending = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        manners = self._server.manners
        if not self._url.endswith(b"/completions"):
            self._transport.write(_OK % (len(_MODELS), _MODELS))
            return
        number = self._server.came()
        if manners.refused_every and number % manners.refused_every == 0:
            self._refuse(number)
        else:
            fields = orjson.loads(body)
            most = fields.get("max_completion_tokens") or fields.get("max_tokens") or 16
            num_chunks, prompt_tokens = int(most), body.count(b" ") + 1
            if manners.engine_step_s:
                self._left, self._ending = num_chunks, _ending(prompt_tokens, num_chunks)
                self._transport.write(_HEAD % number)
                self._server.join(self)
            elif manners.first_s or manners.step_s or manners.num_slots:
                self._task = asyncio.get_running_loop().create_task(self._stream(number, prompt_tokens, num_chunks))
            else:
                self._transport.write(_HEAD % number)
                for _ in range(num_chunks):
                    self._transport.write(_WORD)
                self._transport.write(_ending(prompt_tokens, num_chunks))

    def _refuse(self, number: int) -> None:
        body = b'{"error":{"message":"the line is full","type":"overloaded","param":null,"code":"overloaded"}}'
        head = (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
            b"x-request-id: null-%d\r\ncontent-length: %d\r\n\r\n"
        )
        self._transport.write(head % (number, len(body)) + body)

    async def _stream(self, number: int, prompt_tokens: int, num_chunks: int) -> None:
        manners, loop = self._server.manners, asyncio.get_running_loop()
        await self._server.take_slot()
        try:
            due_s = loop.time() + manners.first_s * self._server.factor()
            for index in range(num_chunks):
                await asyncio.sleep(due_s - loop.time())
                due_s += manners.step_s * self._server.factor()
                self._transport.write(_WORD if index else _HEAD % number + _WORD)
            self._transport.write(_ending(prompt_tokens, num_chunks))
        finally:
            self._server.give_slot()

    def advance(self) -> bool:
        """One engine step; whether there are more to come."""
        self._left -= 1
        self._transport.write(_WORD if self._left else _WORD + self._ending)
        return self._left > 0 and not self._transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()


async def _serve(port: int, manners: Manners) -> None:
    server = NullServer(manners)
    print(json.dumps({"port": await server.listen(port)}), flush=True)
    await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is killed; the first line printed is its port."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.null_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    for name, what in (
        ("first-s", "seconds until the first chunk"),
        ("step-s", "seconds between chunks"),
        ("engine-step-s", "instead: seconds of a step that writes a chunk to every stream"),
        ("jitter", "sigma of the log-normal factor on both"),
        ("freeze-at-s", "seconds after the first request when it freezes"),
        ("freeze-s", "for how long"),
    ):
        parser.add_argument(f"--{name}", type=float, default=0.0, help=what)
    parser.add_argument("--num-slots", type=int, default=0, help="requests answered at once; more wait (0: no bound)")
    parser.add_argument("--refused-every", type=int, default=0, help="each such request gets a 503 (0: none)")
    options = vars(parser.parse_args(arguments))
    port = options.pop("port")
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        uvloop.run(_serve(port, Manners(**options)))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
