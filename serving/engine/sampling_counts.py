"""How tokens were chosen, told by the engine's process to the replica through a small file of counters
in memory.

The worker that samples and the process that is asked for metrics are not the same; vLLM's own statistics have no room
for it. The file is mapped by both, and each counter is written by one.
"""

import mmap
import os
import struct
from collections.abc import Iterable
from enum import IntEnum

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

VARIABLE = "BALLAST_SAMPLING_FILE"


class Count(IntEnum):
    """Rows of logits: of each a token was chosen."""

    KERNELS = 0
    """By Ballast's kernels."""
    STOCK = 1
    """By vLLM's own code, because that is what the engine uses."""
    UNSUPPORTED = 2
    """By vLLM's own code, because the kernels have no answer to what the request asks for."""
    NAN = 3
    """Of these: with a NaN among the logits."""
    NOTHING = 4
    """Of these: no token was allowed."""
    IS_ACTIVE = 5
    """1: the engine uses the kernels."""


_FORMAT = struct.Struct(f"={len(Count)}q")


class SamplingCounts:
    """The counters, in an open file that both processes map; ``path`` is where a process that is started later finds
    it."""

    def __init__(self, file: int, path: str) -> None:
        self._memory = mmap.mmap(file, _FORMAT.size)
        self.path = path

    @classmethod
    def made(cls) -> "SamplingCounts":
        """A file without a name, for this process and those it names ``path`` to, in ``VARIABLE``."""
        file = os.memfd_create("ballast-sampling")  # stays open: it is opened by way of this descriptor
        os.ftruncate(file, _FORMAT.size)
        return cls(file, f"/proc/{os.getpid()}/fd/{file}")

    @classmethod
    def found(cls) -> "SamplingCounts":
        """Those that the environment names; this process's own where it names none."""
        path = os.environ.get(VARIABLE)
        if path is None:
            return cls.made()
        with open(path, "r+b", buffering=0) as file:
            return cls(file.fileno(), path)

    def add(self, count: Count, number: int) -> None:
        self.set(count, self.values()[count] + number)

    def set(self, count: Count, number: int) -> None:
        struct.pack_into("=q", self._memory, 8 * count, number)

    def values(self) -> tuple[int, ...]:
        return _FORMAT.unpack(self._memory)


class SamplingCollector(Collector):
    """The counters as Prometheus wants them."""

    def __init__(self, counts: SamplingCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        values = self._counts.values()
        rows = CounterMetricFamily("ballast_sampled_rows", "Tokens chosen, by who has chosen them.", labels=["sampler"])
        for name, count in (("kernels", Count.KERNELS), ("vllm", Count.STOCK), ("vllm_unsupported", Count.UNSUPPORTED)):
            rows.add_metric([name], values[count])
        yield rows
        faults = CounterMetricFamily(
            "ballast_faulty_logits_rows", "Rows of logits that the kernels met with a fault.", labels=["fault"]
        )
        faults.add_metric(["nan"], values[Count.NAN])
        faults.add_metric(["nothing_allowed"], values[Count.NOTHING])
        yield faults
        yield GaugeMetricFamily(
            "ballast_kernels_active", "1: Ballast's kernels sample; 0: vLLM's own code.", value=values[Count.IS_ACTIVE]
        )
