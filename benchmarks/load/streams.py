"""A client that costs next to nothing: many keep-alive connections, each streaming one chat answer after another.

It parses no JSON and no chunk: it counts ``data: {`` in what arrives and looks for the end of the body, so that what
is measured is the server. Every answer is checked to be whole: status 200, events, and ``[DONE]`` at its end. Engines
that fall behind put several tokens into one event, so events are fewer than tokens under load; tokens are counted by
whole streams.
"""

import asyncio
import time
from dataclasses import dataclass, field

import orjson

_END_OF_BODY = b"0\r\n\r\n"
_DONE = b"data: [DONE]"
_EVENT = b"data: {"


@dataclass(frozen=True, slots=True)
class Target:
    """A server: port on loopback, model name, and an API key if it wants one."""

    port: int
    model: str
    key: str | None = None

    def request(self, prompt: str, num_tokens: int) -> bytes:
        """A whole HTTP request for a streamed answer of exactly ``num_tokens`` tokens."""
        body = orjson.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt}],
                "stream": True,
                "max_tokens": num_tokens,
                "min_tokens": num_tokens,
                "temperature": 0,
            }
        )
        head = ["POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
        if self.key:
            head.append(f"authorization: Bearer {self.key}")
        head.append(f"content-length: {len(body)}")
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@dataclass(slots=True)
class Round:
    """What one round measured. ``ttft_s`` has one entry per stream; ``failures`` says what went wrong, one entry per
    stream.
    """

    num_chunks: int = 0
    num_whole: int = 0
    duration_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def chunks_per_s(self) -> float:
        return self.num_chunks / self.duration_s


async def run_round(target: Target, concurrency: int, num_streams_each: int, num_tokens: int, tag: str) -> Round:
    """``concurrency`` connections at once, each streaming ``num_streams_each`` answers in turn. Prompts differ in
    their first words, so that the prefix cache gives none of them away."""
    result = Round()
    started_s = time.perf_counter()
    workers = [_Worker(target, num_tokens, f"{tag}-{index}", result) for index in range(concurrency)]
    await asyncio.gather(*(worker.run(num_streams_each) for worker in workers))
    result.duration_s = time.perf_counter() - started_s
    return result


class _Worker(asyncio.Protocol):
    """One connection."""

    def __init__(self, target: Target, num_tokens: int, tag: str, result: Round) -> None:
        self._target = target
        self._num_tokens = num_tokens
        self._tag = tag
        self._result = result
        self._sent_s = 0.0
        self._num_events = 0
        self._tail = b""
        self._status = b""
        self._answered: asyncio.Future[None] | None = None

    async def run(self, num_streams: int) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._target.port)
        try:
            for index in range(num_streams):
                self._num_events, self._tail, self._status = 0, b"", b""
                self._answered = loop.create_future()
                request = self._target.request(f"{self._tag} {index}: tell me a story", self._num_tokens)
                self._sent_s = time.perf_counter()
                transport.write(request)
                await self._answered
        except ConnectionError as error:
            self._result.failures.append(str(error))
        finally:
            transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._status = data[:12]
        num_events = data.count(_EVENT)
        if num_events:
            if not self._num_events:
                self._result.ttft_s.append(time.perf_counter() - self._sent_s)
            self._num_events += num_events
            self._result.num_chunks += num_events
        self._tail = (self._tail + data)[-64:]
        if self._tail.endswith(_END_OF_BODY):
            self._finish()

    def _finish(self) -> None:
        assert self._answered is not None
        if not self._status.endswith(b"200"):
            self._result.failures.append(f"status {self._status.decode('latin-1')}")
        elif _DONE not in self._tail or not self._num_events:
            self._result.failures.append(f"incomplete: {self._num_events} events")
        else:
            self._result.num_whole += 1
        self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(f"connection lost: {exc}"))
