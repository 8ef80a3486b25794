"""Open-loop traffic with marks: requests leave when their time has come, whatever became of those before, and things
that happen meanwhile (a kill, a drain, a reload) are marked, so that what came before and after each can be compared.

Latency counts from when a request was due, not from when it got away: a server that stalls its clients cannot hide it.

For scenarios, which watch and break a server in the same event loop, with prompts, tenants and checks of their own. Its
requests go through the client of `ballast bench` (`benchmarks/load/client.py`); what that adds (worker processes,
histograms, one line per request) a few requests a second do not need.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson

from benchmarks.load.answer import Answer
from benchmarks.load.arrivals import Phase, arrival_times_s
from benchmarks.load.client import Client
from benchmarks.load.target import Target

_ROUNDING = 1e-9
"""Of a product of floats: 0.07 * 100 is more than 7."""


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
    """What became of one request. Times are seconds after the start, ``first_s`` is that of the first token; ``error``
    is None for a whole answer."""

    due: Due
    end_s: float = math.nan
    first_s: float = math.nan
    status: int = 0
    pool: str = ""
    fallback: str = ""
    request_id: str = ""
    retry_after_s: float | None = None
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
        return self.since(time.monotonic())

    def since(self, at_s: float) -> float:
        """`time.monotonic` as seconds after the start."""
        return at_s - self._started_s

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
    """Of first tokens that came after the mark: whoever was waiting when it happened is among them."""
    recovery_s: float
    """From the mark until the last request that failed, or began later than the SLO allows, was due; 0: none did."""


def _effect(sent: Sequence[Sent], mark: Mark, window_s: float, slo_ttft_s: float) -> Effect:
    before = [each for each in sent if mark.at_s - window_s <= each.due.at_s < mark.at_s]
    # Those under way when it happened are among those it has hit.
    hit = [each for each in sent if each.due.at_s < mark.at_s + window_s and not each.end_s < mark.at_s]
    bad = [each for each in hit if not each.is_whole or each.ttft_s > slo_ttft_s]
    waited = [each for each in hit if each.first_s >= mark.at_s]
    ttfts = sorted(each.ttft_s for each in waited if each.due.at_s >= mark.at_s)
    return Effect(
        name=mark.name,
        at_s=round(mark.at_s, 2),
        num_succeeded=sum(each.is_whole for each in hit),
        num_failed=sum(not each.is_whole for each in hit),
        ttft_p50_before_s=percentile(sorted(each.ttft_s for each in before if each.first_s > 0.0), 0.5),
        ttft_p50_after_s=percentile(ttfts, 0.5),
        ttft_max_after_s=round(max((each.ttft_s for each in waited), default=math.nan), 4),
        recovery_s=round(max((max(0.0, each.due.at_s - mark.at_s) for each in bad), default=0.0), 2),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    rank = math.ceil(share * len(ordered) - _ROUNDING)
    return round(ordered[max(1, rank) - 1], 4) if ordered else math.nan


def poisson(
    phases: Iterable[tuple[float, float]], output_tokens: int, seed: int, prompt: Callable[[int], str] | None = None
) -> list[Due]:
    """Arrivals of a Poisson process whose rate is that of each (seconds, requests per second) in turn."""
    straight = [Phase(span_s, rate_per_s, rate_per_s) for span_s, rate_per_s in phases]
    times_s = arrival_times_s(straight, "poisson", np.random.default_rng(seed))
    say = prompt or (lambda index: f"{index} of {seed}: tell me a story")
    return [Due(at_s, say(index), output_tokens) for index, at_s in enumerate(times_s.tolist())]


class Driver:
    """Sends requests to one server on loopback, each on a connection of its own: a fault then breaks no connection
    but those of the requests under way."""

    def __init__(self, port: int, model: str, key: str | None = None, *, keeps_text: bool = False) -> None:
        target = Target("127.0.0.1", port, "/v1", key=key)
        self._chat, self._completions = (
            Client(target, endpoint, keeps_alive=False) for endpoint in ("chat", "completions")
        )
        self._model = model
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
        answer = Answer(keeps_text=self._keeps_text)
        client = self._chat if isinstance(due.prompt, str) else self._completions
        await client.ask(self._body(due), answer)
        sent.end_s = self.run.now_s
        self._fill(sent, answer)
        return sent

    def _fill(self, sent: Sent, answer: Answer) -> None:
        headers = answer.headers
        sent.status, sent.error, sent.text = answer.status, answer.problem(), "".join(answer.text)
        sent.pool, sent.fallback = headers.get("x-ballast-pool", ""), headers.get("x-ballast-fallback", "")
        sent.request_id = headers.get("x-request-id", "")
        if answer.output_s:
            sent.first_s = self.run.since(answer.output_s[0])
        if "retry-after" in headers:
            sent.retry_after_s = float(headers.get("retry-after-ms", 1000.0 * float(headers["retry-after"]))) / 1000.0

    def _body(self, due: Due) -> bytes:
        is_chat = isinstance(due.prompt, str)
        fields = {
            "model": self._model,
            **({"messages": [{"role": "user", "content": due.prompt}]} if is_chat else {"prompt": due.prompt}),
            "stream": True,
            "max_tokens": due.output_tokens,
            "min_tokens": due.output_tokens,
            "temperature": 0,
        }
        return orjson.dumps(fields | ({"service_tier": "flex"} if due.is_batch else {}))
