"""NVIDIA Dynamo's SLA planner, throughput mode, for engines that prefill and decode together.

From its planner design document: every `adjustment_interval` the planner predicts the next interval's requests and mean
lengths (constant predictor, or a local linear trend, which stands in for its Kalman and ARIMA ones), and sets
ceil(predicted load / profiled throughput at the SLO). The correction factor for TTFT only ever lowers the load
(min(1, …)) and prefix caching, what it is for, is not simulated, so it is 1. The profile is the true capacity of a
replica for the mix, times ``utilisation``.
"""

import math
from collections.abc import Sequence

from benchmarks.simulator.fleet import View
from benchmarks.simulator.peers.signals import Arrivals
from benchmarks.simulator.scenario import Scenario
from serving.autoscaler.service_model import capacity_per_s

_LEVEL_GAIN, _TREND_GAIN = 0.6, 0.2


class Dynamo:
    """``has_trend``: predict with a local linear trend instead of the last interval."""

    def __init__(
        self, scenario: Scenario, interval_s: float = 180.0, utilisation: float = 0.7, has_trend: bool = False
    ) -> None:
        self._index = scenario.primary_index
        self._targets = [pool.replicas.min for pool in scenario.pools]
        pool = scenario.pools[self._index]
        self._model, self._tpot_slo_s = pool.engine.step_model, scenario.slo.tpot_s
        self._least, self._most = max(1, pool.replicas.min), pool.replicas.max
        self._targets[self._index] = max(self._least, pool.replicas.initial)
        self._interval_s, self._utilisation, self._has_trend = interval_s, utilisation, has_trend
        self._arrivals = Arrivals(interval_s)
        self._at_s = 0.0
        self._level: float | None = None
        self._trend = 0.0

    def targets(self, view: View) -> Sequence[int]:
        self._arrivals.see(view)
        if view.now_s - self._at_s >= self._interval_s:
            self._at_s = view.now_s
            rate_per_s, prompt_tokens, output_tokens = self._arrivals.mean()
            predicted_per_s = self._predict(rate_per_s)
            one_per_s = self._utilisation * capacity_per_s(self._model, prompt_tokens, output_tokens, self._tpot_slo_s)
            wanted = math.ceil(predicted_per_s / one_per_s)
            self._targets[self._index] = min(self._most, max(self._least, wanted))
        return self._targets

    def _predict(self, rate_per_s: float) -> float:
        if not self._has_trend:
            return rate_per_s
        if self._level is None:
            self._level = rate_per_s
        foretold = self._level + self._trend
        level = foretold + _LEVEL_GAIN * (rate_per_s - foretold)
        self._trend += _TREND_GAIN * (level - self._level - self._trend)
        self._level = level
        return max(0.0, level + self._trend)
