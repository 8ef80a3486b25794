"""llm-d's Workload Variant Autoscaler, saturation analyser V2 with the cost-aware optimiser.

From `internal/engines/analyzers/saturation_v2/analyzer.go` and `pipeline/cost_aware_optimizer.go`: demand is tokens in
use plus queued requests times mean input. A replica's capacity is the lesser of k1 = 0.8 of its KV tokens and k2: the
tokens in use while 5 or more were queued; else the rolling mean of such sightings; else N · (I + O/2) with
N = min(B · O / (I + O), max_num_seqs). Required = demand / 0.85 − capacity with pending replicas; spare = capacity −
demand / 0.70. Up by ceil(required / capacity), down by floor(spare / capacity), the last replica stays.
"""

import math
from collections import deque
from collections.abc import Sequence

from benchmarks.simulator.fleet import View
from benchmarks.simulator.peers.signals import Arrivals
from benchmarks.simulator.scenario import Scenario

_KV_THRESHOLD = 0.8
_QUEUE_THRESHOLD = 5
_WINDOW = 10
"""Sightings in the rolling mean."""


class Wva:
    """``interval_s``: its reconcile interval. The two thresholds are its config's."""

    def __init__(
        self, scenario: Scenario, scale_up: float = 0.85, scale_down: float = 0.70, interval_s: float = 30.0
    ) -> None:
        self._index = scenario.primary_index
        self._targets = [pool.replicas.min for pool in scenario.pools]
        pool = scenario.pools[self._index]
        self._engine = pool.engine
        self._least, self._most = max(1, pool.replicas.min), pool.replicas.max
        self._targets[self._index] = max(self._least, pool.replicas.initial)
        self._scale_up, self._scale_down, self._interval_s = scale_up, scale_down, interval_s
        self._arrivals = Arrivals(300.0)
        self._seen: deque[float] = deque(maxlen=_WINDOW)
        self._at_s = -math.inf

    def targets(self, view: View) -> Sequence[int]:
        self._arrivals.see(view)
        if view.now_s - self._at_s < self._interval_s:
            return self._targets
        self._at_s = view.now_s
        pool = view.pools[self._index]
        if not pool.num_ready:
            return self._targets
        _, prompt_tokens, output_tokens = self._arrivals.mean()
        num_queued = view.num_queued + view.num_late
        in_use = pool.kv_tokens / pool.num_ready
        capacity = self._capacity(num_queued / pool.num_ready, in_use, prompt_tokens, output_tokens)
        demand = pool.kv_tokens + num_queued * prompt_tokens
        current = pool.num_replicas
        required = demand / self._scale_up - current * capacity
        spare = pool.num_ready * capacity - demand / self._scale_down
        if required > 0.0:
            current += math.ceil(required / capacity)
        elif spare > 0.0:
            current -= math.floor(spare / capacity)
        self._targets[self._index] = min(self._most, max(self._least, current))
        return self._targets

    def _capacity(self, num_queued: float, in_use: float, prompt_tokens: float, output_tokens: float) -> float:
        memory_bound = _KV_THRESHOLD * self._engine.kv_capacity_tokens
        if num_queued >= _QUEUE_THRESHOLD and in_use > 0.0:
            self._seen.append(in_use)
            return min(memory_bound, in_use)
        if self._seen:
            return min(memory_bound, sum(self._seen) / len(self._seen))
        steady = min(
            self._engine.max_num_batched_tokens * output_tokens / (prompt_tokens + output_tokens),
            self._engine.max_num_seqs,
        )
        return max(1.0, min(memory_bound, steady * (prompt_tokens + 0.5 * output_tokens)))
