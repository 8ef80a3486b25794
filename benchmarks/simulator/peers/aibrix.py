"""AIBrix's GPU optimiser: enough replicas for the load of the last window, by profiled throughput.

From `gpu_optimizer/load_monitor/monitor.py`: every 10 s the requests of the last 240 s are clustered by lengths and a
Melange ILP finds the cheapest replicas whose profiled throughput at the SLO carries the rates, the greater of window
mean and present rate. With one kind of GPU the ILP is a ceiling. The profile is the true capacity of a replica for
the mix, times ``utilisation``.
"""

import math
from collections.abc import Sequence

from benchmarks.simulator.fleet import View
from benchmarks.simulator.peers.signals import Arrivals
from benchmarks.simulator.scenario import Scenario
from serving.autoscaler.service_model import capacity_per_s

_INTERVAL_S = 10.0
_WINDOW_S = 240.0


class Aibrix:
    """``uses_current``: plan for the last interval's rate when that is higher than the window's."""

    def __init__(
        self, scenario: Scenario, utilisation: float = 0.7, uses_current: bool = False, least: int = 1
    ) -> None:
        self._index = scenario.primary_index
        self._targets = [pool.replicas.min for pool in scenario.pools]
        pool = scenario.pools[self._index]
        self._model, self._tpot_slo_s = pool.engine.step_model, scenario.slo.tpot_s
        self._least, self._most = max(least, pool.replicas.min), pool.replicas.max
        self._targets[self._index] = max(self._least, pool.replicas.initial)
        self._utilisation, self._uses_current = utilisation, uses_current
        self._arrivals = Arrivals(_WINDOW_S)
        self._at_s = 0.0

    def targets(self, view: View) -> Sequence[int]:
        self._arrivals.see(view)
        if view.now_s - self._at_s >= _INTERVAL_S:
            self._at_s = view.now_s
            rate_per_s, prompt_tokens, output_tokens = self._arrivals.mean()
            if self._uses_current:
                rate_per_s = max(rate_per_s, self._arrivals.mean(_INTERVAL_S)[0])
            one_per_s = self._utilisation * capacity_per_s(self._model, prompt_tokens, output_tokens, self._tpot_slo_s)
            wanted = math.ceil(rate_per_s / one_per_s)
            self._targets[self._index] = min(self._most, max(self._least, wanted))
        return self._targets
