"""Knative's Pod Autoscaler on concurrency, as its `autoscaler/scaling` documents.

Every 2 s (here: every decision): desired = ceil(mean concurrency over the stable window of 60 s / target), and the same
over the panic window of 6 s. Panic begins when the latter is twice what is ready, lasts a stable window after the last
such moment, and never scales down. Up at most 1000 ×, down at most to a half at once; a scale-down delay keeps the most
that was wanted in it.
"""

import math
from collections import deque
from collections.abc import Sequence

from benchmarks.simulator.fleet import View
from benchmarks.simulator.peers.signals import ongoing
from benchmarks.simulator.scenario import Scenario

_STABLE_S = 60.0
_PANIC_S = 6.0
_PANIC_THRESHOLD = 2.0
_MAX_SCALE_DOWN = 2.0


class Kpa:
    """``target``: concurrency per pod (after Knative's utilisation share)."""

    def __init__(self, scenario: Scenario, target: float = 16.0, scale_down_delay_s: float = 300.0) -> None:
        self._index = scenario.primary_index
        self._targets = [pool.replicas.min for pool in scenario.pools]
        pool = scenario.pools[self._index]
        self._least, self._most = max(1, pool.replicas.min), pool.replicas.max
        self._targets[self._index] = max(self._least, pool.replicas.initial)
        self._target = target
        self._delay_s = scale_down_delay_s
        self._load: deque[tuple[float, int]] = deque()
        self._wanted: deque[tuple[float, int]] = deque()
        self._panic_s = -math.inf
        self._panic_pods = 0

    def targets(self, view: View) -> Sequence[int]:
        now_s = view.now_s
        pool = view.pools[self._index]
        self._load.append((now_s, ongoing(view, pool)))
        while self._load[0][0] <= now_s - _STABLE_S:
            self._load.popleft()
        ready = max(1, pool.num_ready)
        stable = self._pods(self._load)
        panic = self._pods([sample for sample in self._load if sample[0] > now_s - _PANIC_S])
        stable = max(stable, math.floor(ready / _MAX_SCALE_DOWN))
        if panic / ready >= _PANIC_THRESHOLD:
            self._panic_s = now_s
        if now_s - self._panic_s < _STABLE_S:
            self._panic_pods = max(self._panic_pods, panic, stable)
            wanted = self._panic_pods
        else:
            self._panic_pods = 0
            wanted = stable
        self._wanted.append((now_s, wanted))
        while len(self._wanted) > 1 and self._wanted[0][0] <= now_s - self._delay_s:
            self._wanted.popleft()
        wanted = max(number for _, number in self._wanted)
        self._targets[self._index] = min(self._most, max(self._least, wanted))
        return self._targets

    def _pods(self, samples: Sequence[tuple[float, int]]) -> int:
        return math.ceil(sum(number for _, number in samples) / len(samples) / self._target)
