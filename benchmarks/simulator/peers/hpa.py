"""Kubernetes' Horizontal Pod Autoscaler (autoscaling/v2) on ongoing requests per pod, as documented.

Every 15 s: desired = ceil(pods × mean / target) unless the ratio is within 10 % of 1; pods that are not ready count
as idle when scaling up. Up by at most 100 % or 4 pods per 15 s, whichever is more. Down to the highest recommendation
of the last 300 s.
"""

import math
from collections import deque
from collections.abc import Sequence

from benchmarks.simulator.fleet import View
from benchmarks.simulator.peers.signals import ongoing
from benchmarks.simulator.scenario import Scenario

_SYNC_S = 15.0
_TOLERANCE = 0.1
_STABILISATION_S = 300.0


class Hpa:
    """``target``: ongoing requests per pod."""

    def __init__(self, scenario: Scenario, target: float = 16.0) -> None:
        self._index = scenario.primary_index
        self._targets = [pool.replicas.min for pool in scenario.pools]
        pool = scenario.pools[self._index]
        self._least, self._most = max(1, pool.replicas.min), pool.replicas.max
        self._targets[self._index] = max(self._least, pool.replicas.initial)
        self._target = target
        self._synced_s = -math.inf
        self._advice: deque[tuple[float, int]] = deque()

    def targets(self, view: View) -> Sequence[int]:
        if view.now_s - self._synced_s >= _SYNC_S:
            self._synced_s = view.now_s
            current = self._targets[self._index]
            desired = self._desired(view, current)
            self._advice.append((view.now_s, desired))
            while self._advice[0][0] < view.now_s - _STABILISATION_S:
                self._advice.popleft()
            if desired > current:
                desired = min(desired, max(2 * current, current + 4))
            else:
                desired = min(current, max(number for _, number in self._advice))
            self._targets[self._index] = min(self._most, max(self._least, desired))
        return self._targets

    def _desired(self, view: View, current: int) -> int:
        pool = view.pools[self._index]
        if not pool.num_ready:
            return current
        load = ongoing(view, pool)
        ratio = load / pool.num_ready / self._target
        if ratio > 1.0:
            ratio = load / max(current, pool.num_ready) / self._target
            if ratio <= 1.0 + _TOLERANCE:
                return current
            return math.ceil(ratio * max(current, pool.num_ready))
        if ratio >= 1.0 - _TOLERANCE:
            return current
        return math.ceil(ratio * pool.num_ready)
