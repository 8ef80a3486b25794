"""The server's own account of a run: a thread that reads its metrics, its processes and the GPUs while load is sent."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.request import urlopen

from benchmarks import processes
from benchmarks.load.mistake import BenchError
from benchmarks.runs import prometheus
from benchmarks.runs.gpus import Gpus
from benchmarks.runs.intervals import NUM_BLOCKS

T = TypeVar("T")
EVERY_S = 1.0
_TIMEOUT_S = 5.0
_MOST_KEPT = 4 * NUM_BLOCKS


@dataclass(frozen=True, slots=True)
class Source:
    """Where the server can be looked at: its metrics' URL, its process on this machine; None: it cannot. ``model``: the
    one whose metrics count, by its first name; None: all."""

    metrics_url: str | None = None
    pid: int | None = None
    model: str | None = None

    def check(self) -> None:
        """Raises BenchError when there is nothing to see."""
        if self.metrics_url is not None:
            try:
                self.scrape()
            except (OSError, ValueError) as error:
                raise BenchError(
                    f"no metrics at {self.metrics_url}: {error}. Ballast has them on its admin port: "
                    "--metrics-url http://127.0.0.1:8001/metrics"
                ) from error
        if self.pid is not None and not Path(f"/proc/{self.pid}").exists():
            raise BenchError(f"no process {self.pid} runs here; --server-pid is for a server on this machine")

    def scrape(self) -> prometheus.Reading:
        """Raises OSError, ValueError."""
        assert self.metrics_url is not None
        try:
            with urlopen(self.metrics_url, timeout=_TIMEOUT_S) as response:  # noqa: S310  (the operator's own URL)
                return prometheus.read(response.read().decode(), self.model)
        except HTTPException as error:
            raise OSError(f"no whole HTTP answer: {error!r}") from error


@dataclass
class Watcher:
    """Use as a context. ``samples`` has one entry per look."""

    source: Source
    samples: list[dict[str, Any]] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)
    _last: tuple[float, prometheus.Reading] | None = None
    _kept: list[tuple[float, prometheus.Reading]] = field(default_factory=list)
    """With their times, the first and every ``_stride``-th after it: as many as a bootstrap has use for."""
    _stride: int = 1
    _num_read: int = 0

    def __enter__(self) -> Self:
        self._gpus = Gpus.find() if self.source.pid is not None else None  # those of the server's machine alone
        self._over = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        """One sample; what does not answer is left out of it."""
        sample: dict[str, Any] = {"at_s": time.monotonic()}
        if self.source.metrics_url is not None:
            try:
                reading = self.source.scrape()
            except (OSError, ValueError):
                sample["is_metrics_lost"] = True
            else:
                self._keep(sample["at_s"], reading)
                sample |= reading.gauges
                if reading.ready_replicas:
                    sample["ready_replicas"] = sum(reading.ready_replicas.values())
                sample["usd_per_hour_by_pool"] = dict(reading.usd_per_hour)
        if self.source.pid is not None:
            sample |= usage_of(self.source.pid)
        if self._gpus is not None:
            sample |= self._gpus.read()
        self.samples.append(sample)

    def _keep(self, at_s: float, reading: prometheus.Reading) -> None:
        self._last = (at_s, prometheus.continued(self._last[1], reading) if self._last else reading)
        if self._num_read % self._stride == 0:
            self._kept.append(self._last)
        self._num_read += 1
        if len(self._kept) > _MOST_KEPT:
            self._kept = self._kept[::2]
            self._stride *= 2

    def timeline(self) -> list[dict[str, Any]]:
        """The samples with times after ``started_s``."""
        return [{**sample, "at_s": round(sample["at_s"] - self.started_s, 3)} for sample in self.samples]

    def document(self, warmup_s: float = 0.0) -> dict[str, Any]:
        """What happened from the end of the warm-up to the last look."""
        begin_s = self.started_s + warmup_s
        samples = _since(begin_s, [(sample["at_s"], sample) for sample in self.samples])
        span_s = samples[-1]["at_s"] - samples[0]["at_s"]
        found: dict[str, Any] = {"num_samples": len(samples), "span_s": round(span_s, 3)}
        if self._last is not None:
            kept = self._kept if self._kept[-1] is self._last else [*self._kept, self._last]
            found |= prometheus.over(_since(begin_s, kept))
        for name in ("kv_cache_usage", "waiting_requests", "gateway_waiting_requests", "rss_mib", "gpu_power_w"):
            values = [sample[name] for sample in samples if name in sample]
            if values:
                found[f"{name}_mean"] = round(sum(values) / len(values), 4)
                found[f"{name}_max"] = round(max(values), 4)
        cpu_s = [sample["cpu_s"] for sample in samples if "cpu_s" in sample]
        if cpu_s and span_s > 0.0:
            # Less than before: a process has ended, and taken its time with it.
            used_s = sum(max(0.0, after - before) for before, after in pairwise(cpu_s))
            found["cpu_cores_mean"] = round(used_s / span_s, 3)
        if "gpu_power_w_mean" in found:
            found["gpu_energy_j"] = round(found["gpu_power_w_mean"] * span_s, 1)
        return found

    def usd_per_hour(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Mean from ``begin_s`` to ``end_s`` after ``started_s`` by pool, as the server says it; the last before where
        it says nothing meanwhile, empty when it never does."""
        said = [
            (sample["at_s"] - self.started_s, sample["usd_per_hour_by_pool"])
            for sample in self.samples
            if sample.get("usd_per_hour_by_pool") and sample["at_s"] - self.started_s <= end_s
        ]
        rows = [row for at_s, row in said if at_s >= begin_s] or [row for _, row in said[-1:]]
        return {pool: sum(row.get(pool, 0.0) for row in rows) / len(rows) for row in rows for pool in row}


def _since(begin_s: float, looks: Sequence[tuple[float, T]]) -> list[T]:
    """What was seen at or after ``begin_s``, and the last before it."""
    num_before = sum(at_s < begin_s for at_s, _ in looks)
    return [seen for _, seen in looks[min(max(0, num_before - 1), len(looks) - 1) :]]


def _num_entries(pid: int, folder: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())


_FIGURES: dict[str, Callable[[int], float]] = {
    "cpu_s": processes.cpu_s,
    "rss_mib": lambda pid: processes.rss_bytes(pid) / 2**20,
    "num_fds": lambda pid: _num_entries(pid, "fd"),
    "num_threads": lambda pid: _num_entries(pid, "task"),
}


def usage_of(pid: int) -> dict[str, float]:
    """CPU time, memory, descriptors, threads and number of a process and all its descendants. Processes may end
    meanwhile. Without what may not be read of one of them, such as descriptors of another user's."""
    found = dict.fromkeys((*_FIGURES, "num_processes"), 0.0)
    forbidden = set()
    for each in (pid, *processes.children([pid])):
        for name, read in _FIGURES.items():
            try:
                found[name] += read(each)
            except PermissionError:
                forbidden.add(name)
            except (FileNotFoundError, ProcessLookupError):
                break
        else:
            found["num_processes"] += 1
    return {name: value for name, value in found.items() if name not in forbidden}
