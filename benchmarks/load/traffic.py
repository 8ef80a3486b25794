"""Open-loop traffic with marks: requests leave when their time has come, whatever became of those before, and things
that happen meanwhile (a kill, a drain, a reload) are marked, so that what came before and after each can be compared.

Latency counts from when a request was due, not from when it got away: a server that stalls its clients cannot hide it.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

_EVENT, _DONE, _ERROR = b"data: {", b"data: [DONE]", b'data: {"error"'
_MAX_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Due:
    """A request that is to leave ``at_s`` after the start. A prompt of token ids goes to /v1/completions as it is: its
    length is exact, and no tokenizer is in the way."""

    at_s: float
    prompt: str | tuple[int, ...]
    output_tokens: int
    is_batch: bool = False


@dataclass(slots=True)
class Sent:
    """What became of one request. Times are seconds after the start; ``error`` is None for a whole answer."""

    due: Due
    end_s: float = math.nan
    first_s: float = math.nan
    status: int = 0
    pool: str = ""
    fallback: str = ""
    request_id: str = ""
    retry_after_s: float | None = None
    num_events: int = 0
    text: str = ""
    error: str | None = "not finished"

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.due.at_s

    @property
    def is_whole(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened."""

    at_s: float
    name: str


@dataclass(slots=True)
class Run:
    """All requests and marks of one run. ``late_s``: how late the driver itself let a request go, at worst."""

    sent: list[Sent] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    late_s: float = 0.0
    _started_s: float = field(default_factory=time.monotonic)

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._started_s

    def mark(self, name: str) -> None:
        self.marks.append(Mark(self.now_s, name))

    @property
    def failed(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.is_whole]

    def effects(self, window_s: float, slo_ttft_s: float) -> Iterator["Effect"]:
        """What each mark did."""
        return (_effect(self.sent, mark, window_s, slo_ttft_s) for mark in self.marks)


@dataclass(frozen=True, slots=True)
class Effect:
    """One mark: TTFT before and after it, what failed after it, and how long until all was well again."""

    name: str
    at_s: float
    num_succeeded: int
    num_failed: int
    ttft_p50_before_s: float
    ttft_p50_after_s: float
    ttft_max_after_s: float
    recovery_s: float
    """From the mark until the last request that failed, or began later than the SLO allows, was due; 0: none did."""


def _effect(sent: Sequence[Sent], mark: Mark, window_s: float, slo_ttft_s: float) -> Effect:
    before = [each for each in sent if mark.at_s - window_s <= each.due.at_s < mark.at_s]
    # Those under way when it happened are among those it has hit.
    hit = [each for each in sent if each.due.at_s < mark.at_s + window_s and not each.end_s < mark.at_s]
    bad = [each for each in hit if not each.is_whole or each.ttft_s > slo_ttft_s]
    ttfts = sorted(each.ttft_s for each in hit if each.due.at_s >= mark.at_s and each.first_s > 0.0)
    return Effect(
        name=mark.name,
        at_s=round(mark.at_s, 2),
        num_succeeded=sum(each.is_whole for each in hit),
        num_failed=sum(not each.is_whole for each in hit),
        ttft_p50_before_s=percentile(sorted(each.ttft_s for each in before if each.first_s > 0.0), 0.5),
        ttft_p50_after_s=percentile(ttfts, 0.5),
        ttft_max_after_s=round(ttfts[-1], 4) if ttfts else math.nan,
        recovery_s=round(max((max(0.0, each.due.at_s - mark.at_s) for each in bad), default=0.0), 2),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4) if ordered else math.nan


def poisson(
    phases: Iterable[tuple[float, float]], output_tokens: int, seed: int, prompt: Callable[[int], str] | None = None
) -> list[Due]:
    """Arrivals of a Poisson process whose rate is that of each (seconds, requests per second) in turn."""
    rng = random.Random(seed)
    found: list[Due] = []
    begin_s = 0.0
    for duration_s, rate_per_s in phases:
        at_s = begin_s
        begin_s += duration_s
        while rate_per_s > 0.0 and (at_s := at_s + rng.expovariate(rate_per_s)) < begin_s:
            text = prompt(len(found)) if prompt else f"{len(found)} {rng.random():.6f}: tell me a story"
            found.append(Due(at_s, text, output_tokens))
    return found


class Driver:
    """Sends requests to one server on loopback."""

    def __init__(self, port: int, model: str, key: str | None = None, *, keeps_text: bool = False) -> None:
        self._port = port
        self._model = model
        self._key = key
        self._keeps_text = keeps_text
        self.run = Run()

    async def drive(self, schedule: Sequence[Due]) -> Run:
        """Send all of ``schedule``, and wait until all have been answered."""
        run, tasks = self.run, []
        for due in schedule:
            if (wait_s := due.at_s - run.now_s) > 0.0:
                await asyncio.sleep(wait_s)
            run.late_s = max(run.late_s, run.now_s - due.at_s)
            tasks.append(asyncio.create_task(self.send(due)))
        await asyncio.gather(*tasks)
        return run

    async def send(self, due: Due) -> Sent:
        """One request, now."""
        sent = Sent(due)
        self.run.sent.append(sent)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_MAX_LINE_BYTES)
            try:
                writer.write(self._request(due))
                await self._read(reader, sent)
            finally:
                writer.close()
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            sent.error = f"connection: {error!r}"
        sent.end_s = self.run.now_s
        return sent

    async def _read(self, reader: asyncio.StreamReader, sent: Sent) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        sent.status = int(head[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        sent.pool, sent.fallback = headers.get("x-ballast-pool", ""), headers.get("x-ballast-fallback", "")
        sent.request_id = headers.get("x-request-id", "")
        if "retry-after" in headers:
            sent.retry_after_s = float(headers.get("retry-after-ms", 1000.0 * float(headers["retry-after"]))) / 1000.0
        is_done, error = False, None
        while line := await reader.readline():
            if line.startswith(_EVENT):
                if sent.num_events == 0:
                    sent.first_s = self.run.now_s
                sent.num_events += 1
                if line.startswith(_ERROR):
                    error = line.decode().strip()
                elif self._keeps_text:
                    sent.text += _text(orjson.loads(line[6:])["choices"][0])
            elif line.startswith(_DONE):
                is_done = True
            elif sent.status != 200 and line.startswith(b"{"):
                error = line.decode().strip()
        if sent.status != 200:
            sent.error = f"{sent.status}: {error}"
        else:
            sent.error = error or (None if is_done else "the stream ended without [DONE]")

    def _request(self, due: Due) -> bytes:
        is_chat = isinstance(due.prompt, str)
        fields = {
            "model": self._model,
            **({"messages": [{"role": "user", "content": due.prompt}]} if is_chat else {"prompt": due.prompt}),
            "stream": True,
            "max_tokens": due.output_tokens,
            "min_tokens": due.output_tokens,
            "temperature": 0,
        }
        body = orjson.dumps(fields | ({"service_tier": "flex"} if due.is_batch else {}))
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        head = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
        head += [f"authorization: Bearer {self._key}"] if self._key else []
        head += ["connection: close", f"content-length: {len(body)}"]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _text(choice: dict[str, Any]) -> str:
    """Of one chunk, of a chat or a completion."""
    return str(choice["delta"].get("content") or "") if "delta" in choice else str(choice["text"])
