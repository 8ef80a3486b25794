"""Ray Serve 2.60: its own default policy, its own wrapper, its own code, on a fake clock.

`replica_queue_length_autoscaling_policy`'s core goes through `_apply_autoscaling_config`, as Ray Serve's autoscaling
state runs it, with an `AutoscalingContext` built by hand. What the simulator supplies is the metric: ongoing
requests, those that wait in the gateway included, sampled at each decision and averaged over `look_back_period_s`,
known `PUSH_INTERVAL_S` late at most.
"""

import sys
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

from benchmarks.simulator.fleet import View
from benchmarks.simulator.scenario import Scenario

PUSH_INTERVAL_S = 10.0
"""Ray's default: replicas and handles report that often."""


class RayServe:
    """One deployment per pool. Only the first primary pool scales; the others stay at their minimum."""

    def __init__(
        self,
        scenario: Scenario,
        target_ongoing_requests: float = 2.0,
        downscale_delay_s: float = 600.0,
        upscale_delay_s: float = 30.0,
        min_replicas: int = 1,
    ) -> None:
        self._index = scenario.primary_index
        self._least = [pool.replicas.min for pool in scenario.pools]
        pool = scenario.primary
        self._policy, config_class, self._context, self._deployment, self._clock = _ray()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metrics_interval_s, which nothing here reads
            self._config = config_class(
                min_replicas=min_replicas,
                max_replicas=pool.replicas.max,
                target_ongoing_requests=target_ongoing_requests,
                upscale_delay_s=upscale_delay_s,
                downscale_delay_s=downscale_delay_s,
            )
        self._samples: deque[tuple[float, float]] = deque()
        self._state: dict[str, Any] = {}
        self._target = max(min_replicas, pool.replicas.initial)
        self._pushed_at_s = -PUSH_INTERVAL_S
        self._known = 0.0

    def targets(self, view: View) -> Sequence[int]:
        pool = view.pools[self._index]
        self._samples.append((view.now_s, pool.num_running + view.num_queued + view.num_late))
        while self._samples[0][0] < view.now_s - self._config.look_back_period_s:
            self._samples.popleft()
        if view.now_s - self._pushed_at_s >= PUSH_INTERVAL_S:
            self._pushed_at_s = view.now_s
            self._known = sum(number for _, number in self._samples) / len(self._samples)
        self._clock.now_s = view.now_s
        context = self._context(
            deployment_id=self._deployment,
            deployment_name="gpu",
            app_name="simulated",
            current_num_replicas=pool.num_ready,
            target_num_replicas=self._target,
            running_replicas=[],
            total_num_requests=self._known,
            total_queued_requests=float(view.num_queued + view.num_late),
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=view.now_s,
            config=self._config,
        )
        wanted, self._state = self._policy(context)
        self._target = min(self._config.max_replicas, max(self._config.min_replicas, int(wanted)))
        targets = list(self._least)
        targets[self._index] = self._target
        return targets


class _Clock:
    """Stands in for the module `time` in Ray's policy."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s


_clock = _Clock()


def _ray() -> tuple[Any, Any, Any, Any, _Clock]:
    """Ray's wrapped policy with our clock in it. Imported here: it takes seconds, and other policies do without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own use of pydantic
        from ray.serve import autoscaling_policy
        from ray.serve._private.common import DeploymentID
        from ray.serve.config import AutoscalingConfig, AutoscalingContext

    module = sys.modules[autoscaling_policy.__name__]
    module.time = _clock  # type: ignore[attr-defined]
    policy = module._apply_autoscaling_config(module._core_replica_queue_length_policy)
    return policy, AutoscalingConfig, AutoscalingContext, DeploymentID(name="gpu", app_name="simulated"), _clock
