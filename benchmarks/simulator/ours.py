"""The production autoscaler in the simulator: `decide`, unchanged, fed from what a policy sees."""

from collections.abc import Sequence

from benchmarks.simulator.fleet import PoolView, View
from benchmarks.simulator.scenario import Scenario
from serving.autoscaler.memory import Memory
from serving.autoscaler.policy import decide
from serving.autoscaler.tuning import Tuning
from serving.autoscaler.types import (
    NUM_PROMPT_BUCKETS,
    Demand,
    FallbackBounds,
    Plan,
    PoolSpec,
    PoolState,
    Spec,
    Work,
    prompt_bucket,
)


class Ours:
    """Ballast's own policy."""

    def __init__(self, scenario: Scenario, tuning: Tuning | None = None) -> None:
        self._names = tuple(pool.name for pool in scenario.pools)
        self._prices = {pool.name: pool.usd_per_hour for pool in scenario.pools}
        self._spec = spec_of(scenario, tuning or Tuning())
        self._memory = Memory()
        self.plan: Plan | None = None

    def targets(self, view: View) -> Sequence[int]:
        fleet = {name: state_of(pool, view.now_s) for name, pool in zip(self._names, view.pools, strict=True)}
        plan, self._memory = decide(view.now_s, fleet, demand_of(view), self._prices, self._spec, self._memory)
        self.plan = plan
        return [plan.targets[name] for name in self._names]


def spec_of(scenario: Scenario, tuning: Tuning) -> Spec:
    """The scenario as the autoscaler's spec. Its calibration is right: the scenario's own coefficients."""
    return Spec(
        pools=tuple(
            PoolSpec(
                name=pool.name,
                min_replicas=pool.replicas.min,
                max_replicas=pool.replicas.max,
                model=pool.engine.step_model,
                cold_start_s=pool.cold_start.mean_s,
                fallback=FallbackBounds(**pool.fallback.model_dump()) if pool.fallback else None,
            )
            for pool in scenario.pools
        ),
        ttft_slo_s=scenario.slo.ttft_s,
        tpot_slo_s=scenario.slo.tpot_s,
        objective=scenario.slo.objective,
        max_usd_per_hour=scenario.cost.max_usd_per_hour,
        target_usd_per_million_tokens=scenario.cost.target_usd_per_million_tokens,
        tuning=tuning,
    )


def state_of(pool: PoolView, now_s: float) -> PoolState:
    return PoolState(
        num_ready=pool.num_ready,
        starting_age_s=tuple(now_s - since_s for since_s in pool.starting_since_s),
        cold_starts_s=pool.cold_starts_s,
        work=Work(pool.num_steps, pool.prefill_tokens, pool.decode_tokens, pool.kv_token_steps, pool.busy_s),
    )


def demand_of(view: View) -> Demand:
    prompts = [0] * NUM_PROMPT_BUCKETS
    prompt_tokens = 0
    for request in view.arrived:
        tokens = request.prompt_tokens
        prompts[prompt_bucket(tokens)] += 1
        prompt_tokens += tokens
    return Demand(
        interval_s=view.interval_s,
        num_arrived=len(view.arrived),
        prompt_tokens=prompt_tokens,
        prompts=tuple(prompts),
        num_finished=len(view.finished),
        output_tokens=sum([request.output_tokens for request in view.finished]),
        num_met=view.num_met,
        num_missed=view.num_missed,
        num_queued=view.num_queued,
        num_late=view.num_late,
        late_prompt_tokens=view.late_prompt_tokens,
        oldest_late_s=view.oldest_late_s,
    )
