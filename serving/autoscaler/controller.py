"""The autoscaler of a running server: looks, decides, records, and tells the gateways what is coming."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.autoscaler.decisions import Decision, Start, with_models
from serving.autoscaler.memory import Memory
from serving.autoscaler.observe import DemandObserver, GatewayReading, PoolObserver, PoolReading
from serving.autoscaler.policy import decide
from serving.autoscaler.spending import Spending
from serving.autoscaler.tuning import Tuning
from serving.autoscaler.types import FallbackBounds, PoolSpec, Prices, Spec
from serving.config.autoscaler import AutoscalerConfig
from serving.config.model import ModelConfig
from serving.config.pool import Pool
from serving.protocol.board import ModelBoard, PoolBoard
from serving.router.prediction import StepModel

logger = logging.getLogger("ballast.autoscaler")

_DIGITS = 4
"""Of a measured speed: more would only make the record longer."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of one model at one time."""

    pools: Mapping[str, PoolReading]
    gateways: Mapping[str, GatewayReading]


@dataclass(slots=True)
class ModelAutoscaler:
    """One model: its observers and its memory."""

    model: ModelConfig
    config: AutoscalerConfig
    _pools: dict[str, PoolObserver] = field(default_factory=dict)
    _demand: DemandObserver = field(default_factory=DemandObserver)
    _memory: Memory = field(default_factory=Memory)
    _spending: Spending = field(default_factory=Spending)

    def decide(self, looked: Looked, now_s: float) -> tuple[Decision, Start]:
        """The decision, and what was known before it."""
        spec, prices = spec_of(self.model, self.config), prices_of(self.model)
        fleet = {
            pool: self._pools.setdefault(pool, PoolObserver()).look(reading, now_s)
            for pool, reading in looked.pools.items()
        }
        step_models = {pool.name: _rounded(self._model(pool)) for pool in spec.pools}
        demand = self._demand.look(looked.gateways, now_s)
        start = Start(self.model.name, spec, self._memory)
        plan, self._memory = decide(now_s, fleet, demand, prices, with_models(spec, step_models), self._memory)
        self._spending.add(fleet, prices, now_s)
        decision = Decision(
            at_s=round(time.time(), 3),
            now_s=now_s,
            model=self.model.name,
            fleet=fleet,
            demand=demand,
            prices=prices,
            step_models=step_models,
            plan=plan,
            is_applied=self.config.mode == "act",
        )
        return decision, start

    def board(self, decision: Decision) -> ModelBoard:
        """What the gateways are told of it."""
        costs = self._spending.costs()
        fallbacks = {pool.name for pool in self.model.pools if pool.fallback is not None}
        cold_starts_s = {reason.pool: reason.cold_start_s for reason in decision.plan.reasons}
        backed_off = {reason.pool for reason in decision.plan.reasons if reason.backed_off_until_s is not None}
        bindings = {reason.pool: reason.binding.value for reason in decision.plan.reasons}
        payable = payable_pools(self.model)
        pools = {}
        for pool, state in decision.fleet.items():
            coming_s = min(
                (max(0.0, cold_starts_s.get(pool, 0.0) - age_s) for age_s in state.starting_age_s), default=None
            )
            cost = costs[pool]
            is_available = state.is_placeable and pool not in backed_off
            pools[pool] = PoolBoard(
                target=decision.plan.targets.get(pool, 0),
                num_ready=state.num_ready,
                num_starting=len(state.starting_age_s),
                coming_s=coming_s,
                cold_start_s=cold_starts_s.get(pool, 0.0),
                is_available=is_available,
                can_start=is_available and ((pool in payable and decision.is_applied) or bool(state.starting_age_s)),
                is_fallback=pool in fallbacks,
                binding=bindings.get(pool, ""),
                usd_per_hour=cost.usd_per_hour,
                usage_usd_per_million_tokens=cost.usage_usd_per_million_tokens,
                allocation_usd_per_million_tokens=cost.allocation_usd_per_million_tokens,
            )
        plan = decision.plan
        return ModelBoard(pools, plan.binding.value, plan.forecast_per_s, plan.budget_spent)

    def _model(self, pool: PoolSpec) -> StepModel:
        observer = self._pools.get(pool.name)
        return observer.model(pool.model) if observer is not None else pool.model


def spec_of(model: ModelConfig, config: AutoscalerConfig) -> Spec:
    """A model's config as `decide` wants it."""
    tuning = Tuning(
        min_hold_s=config.min_hold_s,
        relearn_s=config.relearn_s,
        patience_s=config.patience_s,
        back_off_s=config.back_off_s,
    )
    return Spec(
        pools=tuple(_pool_spec(pool) for pool in model.pools),
        ttft_slo_s=model.slo.ttft_s,
        tpot_slo_s=model.slo.tpot_s,
        objective=model.slo.objective,
        max_usd_per_hour=model.cost.max_usd_per_hour,
        target_usd_per_million_tokens=model.cost.target_usd_per_million_tokens,
        tuning=tuning,
    )


def payable_pools(model: ModelConfig) -> set[str]:
    """The pools of which one replica fits under the model's ceiling on spending, beside all that must be kept."""
    ceiling = model.cost.max_usd_per_hour
    kept = sum(pool.replicas.min * pool.usd_per_hour for pool in model.pools)
    return {
        pool.name
        for pool in model.pools
        if ceiling is None or pool.replicas.min or kept + pool.usd_per_hour <= ceiling * (1.0 + 1e-9)
    }


def prices_of(model: ModelConfig) -> Prices:
    """US dollars per replica and hour, by pool."""
    return {pool.name: pool.usd_per_hour for pool in model.pools}


def _pool_spec(pool: Pool) -> PoolSpec:
    engine, bounds = pool.engine, pool.fallback
    c0_s, c1_s_per_sequence, ckv_s_per_token, cp_s_per_token = pool.seed_speed
    return PoolSpec(
        name=pool.name,
        min_replicas=pool.replicas.min,
        max_replicas=pool.replicas.max,
        model=StepModel(
            c0_s=c0_s,
            c1_s_per_sequence=c1_s_per_sequence,
            ckv_s_per_token=ckv_s_per_token,
            cp_s_per_token=cp_s_per_token,
            max_num_batched_tokens=engine.max_num_batched_tokens or _SEED_BATCHED_TOKENS,
            max_num_seqs=engine.max_num_seqs or _SEED_NUM_SEQS,
            kv_capacity_tokens=_SEED_KV_TOKENS,
        ),
        cold_start_s=pool.seed_cold_start_s,
        fallback=FallbackBounds(bounds.max_prompt_tokens, bounds.max_output_tokens) if bounds else None,
    )


_SEED_BATCHED_TOKENS, _SEED_NUM_SEQS, _SEED_KV_TOKENS = 2048, 256, 100_000
"""Until a replica has said what its engine has; the first two are vLLM's defaults."""


def _rounded(model: StepModel) -> StepModel:
    return StepModel(
        c0_s=_significant(model.c0_s),
        c1_s_per_sequence=_significant(model.c1_s_per_sequence),
        ckv_s_per_token=_significant(model.ckv_s_per_token),
        cp_s_per_token=max(_significant(model.cp_s_per_token), 1e-9),
        max_num_batched_tokens=model.max_num_batched_tokens,
        max_num_seqs=model.max_num_seqs,
        kv_capacity_tokens=model.kv_capacity_tokens,
    )


def _significant(value: float) -> float:
    return round(value, _DIGITS - 1 - math.floor(math.log10(value))) if value > 0.0 else 0.0
