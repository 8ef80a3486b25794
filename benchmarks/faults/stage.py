"""A running server as a fault meets it: traffic to it, and its own account of itself."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load.traffic import Driver, Due, Effect, Run, Sent
from benchmarks.server import Replica, RunningServer
from serving.tenancy.keys import NewKey
from serving.tenancy.store import KeyStore

SLO_TTFT_S = 2.0
POLL_S = 0.1
#: Between a process's end and the moment when the kernel refuses, and HAProxy passes over, what was sent to it.
CUT_S = 1.0
#: Gateways look for new keys twice a second.
KEYS_KNOWN_S = 2.0
STEADY_TENANT = "steady"


@dataclass(frozen=True, slots=True)
class Pace:
    """How much time a fault may take. ``rate_per_s`` is that of the steady traffic, before the mark and after it."""

    before_s: float
    after_s: float
    rate_per_s: float
    num_cycles: int
    long_stream_s: float
    overload_s: float


BENCHMARK = Pace(before_s=6.0, after_s=20.0, rate_per_s=4.0, num_cycles=100, long_stream_s=60.0, overload_s=15.0)
QUICK = Pace(before_s=2.0, after_s=6.0, rate_per_s=4.0, num_cycles=10, long_stream_s=12.0, overload_s=4.0)


@dataclass
class Stage:
    """One server that is ready, and how fast to go."""

    server: RunningServer
    pace: Pace
    model: str
    output_tokens: int
    _keys: dict[str, str] = field(default_factory=dict, repr=False)

    # -------------------------------------------------------------------------------------------------------- traffic

    def steady(self, seconds: float, output_tokens: int | None = None) -> list[Due]:
        """Requests at the stage's rate, evenly spaced: every window of a second has as many as the next."""
        rate_per_s, tokens = self.pace.rate_per_s, output_tokens or self.output_tokens
        return [
            Due(index / rate_per_s, f"Count from {index % 8} to {index % 8 + 60}.", tokens)
            for index in range(int(seconds * rate_per_s))
        ]

    def driver(self, model: str | None = None, tenant: str | None = None) -> Driver:
        """``tenant``: one that has a key (`make_keys`); none is needed until then."""
        key = self._keys[tenant or STEADY_TENANT] if self._keys else None
        return Driver(self.server.port, model or self.model, key, keeps_text=True)

    async def disturbed(
        self,
        name: str,
        inject: Callable[[], Awaitable[None] | None],
        schedule: Sequence[Due] | None = None,
        model: str | None = None,
    ) -> Run:
        """Steady traffic, or ``schedule``, and in the midst of it ``inject``, with a mark."""
        driver = self.driver(model)
        if schedule is None:
            schedule = self.steady(self.pace.before_s + self.pace.after_s)
        traffic = asyncio.create_task(driver.drive(schedule))
        await asyncio.sleep(self.pace.before_s - driver.run.now_s)
        driver.run.mark(name)
        if (awaited := inject()) is not None:
            await awaited
        return await traffic

    def effect(self, run: Run) -> Effect:
        """Of the first mark, over the rest of the run."""
        return next(run.effects(self.pace.before_s + self.pace.after_s + 60.0, SLO_TTFT_S))

    def make_keys(self, *tenants: str) -> None:
        """See that each has an API key. From the first one on, the server wants one of everybody."""
        if new := [tenant for tenant in (STEADY_TENANT, *tenants) if tenant not in self._keys]:
            with KeyStore.open(self.server.state_dir) as store:
                for tenant in new:
                    minted, _ = store.create(NewKey(f"{tenant}-key", tenant), os.urandom, time.time())
                    self._keys[tenant] = minted.plaintext
            time.sleep(KEYS_KNOWN_S)

    # ------------------------------------------------------------------------------------------- what it says of itself

    def replicas(self, model: str | None = None) -> list[Replica]:
        """The replicas that take requests, of the stage's own model or of another."""
        return self.server.replicas(model or self.model)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples called ``name`` that carry these labels among others."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.server.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def is_ready(self) -> bool:
        """What /ready says. Raises OSError where nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.server.port}/ready", timeout=2) as response:
                return bool(response.status == 200)
        except HTTPError:
            return False

    def board_at_s(self) -> float:
        """When the autoscaler last spoke, in seconds since 1970."""
        fleet = self.server.status()["fleet"]
        return float(fleet["at_s"]) if fleet else 0.0

    def targets(self) -> dict[str, int]:
        """What the autoscaler wants of each pool."""
        models = self.server.status()["fleet"]["models"].values()
        return {pool: entry["target"] for model in models for pool, entry in model["pools"].items()}

    def log_lines(self) -> list[dict[str, Any]]:
        path = self.server.state_dir / "logs" / "ballast.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def counted_once(self, run: Run) -> bool:
        """Whether the log says of every whole answer what it had, in one line."""
        counted: dict[str, list[int]] = {}
        for line in self.log_lines():
            if line["logger"] == "ballast.request":
                counted.setdefault(line["request_id"], []).append(line["output_tokens"])
        return all(counted.get(sent.request_id) == [sent.due.output_tokens] for sent in run.sent if sent.is_whole)

    async def until(self, condition: Callable[[], object], timeout_s: float) -> float:
        """Seconds until ``condition`` holds; infinity: not in that time. What it raises for want of an answer counts
        as no."""
        began_s = time.monotonic()
        while True:
            with contextlib.suppress(OSError, ValueError):
                if await asyncio.to_thread(condition):
                    return time.monotonic() - began_s
            if time.monotonic() - began_s > timeout_s:
                return float("inf")
            await asyncio.sleep(POLL_S)

    async def settled(
        self, num_replicas: int, model: str | None = None, timeout_s: float = 120.0, without: Container[str] = ()
    ) -> float:
        """Seconds until so many replicas take requests, none of ``without`` among them, and HAProxy has two
        gateways.
        """

        def is_settled() -> bool:
            ready = {replica["replica"] for replica in self.replicas(model)}
            is_whole = len(ready) == num_replicas and not any(name in without for name in ready)
            return is_whole and len(self.server.gateways()) == self.server.num_routed() == 2

        return await self.until(is_settled, timeout_s)


def names(replicas: Iterable[Replica]) -> set[str]:
    return {replica["replica"] for replica in replicas}


def under_way(run: Run) -> list[Sent]:
    """The requests that had been sent, and had no end, at the run's first mark."""
    at_s = run.marks[0].at_s
    return [sent for sent in run.sent if sent.due.at_s <= at_s + CUT_S and sent.end_s >= at_s]


def only_cut(run: Run) -> bool:
    """Whether nothing failed but what was under way at the mark."""
    cut = under_way(run)
    return all(any(sent is other for other in cut) for sent in run.failed)


def is_scripted(sent: Sent) -> bool:
    """Whether the answer is what a scripted engine says, word for word."""
    return sent.text == "".join(f"w{index} " for index in range(sent.due.output_tokens))


def texts(sent: Iterable[Sent]) -> dict[object, set[str]]:
    """Every text that was an answer to each prompt."""
    found: dict[object, set[str]] = {}
    for each in sent:
        if each.is_whole:
            found.setdefault(each.due.prompt, set()).add(each.text)
    return found
