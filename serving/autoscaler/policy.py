"""How many replicas each pool should have: a pure decision from what is known now.

Two prices decide. A replica costs what its pool charges. A missed request costs a *shadow price*, which rises while the
error budget is being overspent and falls while it is not (the multiplier of a Lagrangian whose constraint is the SLO's
objective). The plan is the fleet with the least sum of both for the demand expected when a replica asked for now would
be ready (`demand.py`, `score.py`). From this one rule follow the headroom (as much as its misses are worth), the bridge
(a fallback pool is worth starting while the primary one starts), and the primary pool's way to zero (when a fallback
pool alone is cheaper, misses included).

Around it stand what no forecast can know:

- Up at once; replicas that start count as if they were there. Down only when less was enough for a third of a cold
  start and `min_hold_s` at least, only to the most that was wanted in that time, and only if it still is at the highest
  recent load and with the replicas of other pools that are ready by then.
- A replica that starts for too long means that the pool has no capacity: it is left at what runs, for a time that
  doubles with each failure, and the plan is made with the other pools.
- After a restart nothing is scaled down until enough was seen.
- A late request is not left alone, nor one that was turned away: where nothing is up that may serve it, the cheapest
  primary pool that may be paid for starts one replica, or else a fallback pool.

Inputs that are no numbers count as not known. The function never raises for what it is told.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from serving.autoscaler.bounds import name_bounds, usd_per_hour_bound, within_spend
from serving.autoscaler.clean import clean_demand, clean_number
from serving.autoscaler.demand import DemandMemory, Outlook, Service, learn, outlook
from serving.autoscaler.holding import hold
from serving.autoscaler.memory import Memory
from serving.autoscaler.pool_view import PoolView, look
from serving.autoscaler.prices import MIN_SLACK_S, budget_spent, chosen_foresight, miss_price, offer_of
from serving.autoscaler.score import Market, cheapest_fleet
from serving.autoscaler.service_model import prefill_s, prompt_share
from serving.autoscaler.tuning import Tuning
from serving.autoscaler.types import Binding, Demand, Fleet, Plan, Prices, Reason, Spec

_MAX_GAP_S = 600.0
"""A longer time between two decisions says nothing of the rate inside it."""
_BRIDGE_COLD_STARTS = 2.0
"""A bridge is begun when what it bridges to is still away for this many of its own cold starts."""
_MIN_DRAIN_S = 30.0
"""What waits is planned to be served within a lead time, or within this where that is longer."""
_RANK = (
    Binding.MAX_USD_PER_HOUR,
    Binding.TARGET_USD_PER_MILLION_TOKENS,
    Binding.CAPACITY,
    Binding.REPLICAS_MAX,
    Binding.PATIENCE,
    Binding.RELEARNING,
    Binding.HOLD,
    Binding.REPLICAS_MIN,
    Binding.SLO,
)
"""Of the bounds that pools are at, the first of these is named for the whole plan."""


def decide(
    now_s: float, fleet: Fleet, demand: Demand, prices: Prices, spec: Spec, memory: Memory
) -> tuple[Plan, Memory]:
    """The plan, and what to remember for the next decision."""
    last_s = memory.last_s
    now_s = clean_number(now_s, default=last_s or 0.0, least=last_s or 0.0)
    demand = clean_demand(demand)
    dt_s = min(_MAX_GAP_S, now_s - last_s if last_s is not None else demand.interval_s)
    pools = [look(pool, fleet, prices, memory, now_s, spec.tuning) for pool in spec.pools]
    lead_s = max((pool.cold_start_s for pool in pools if not pool.spec.fallback), default=0.0)
    lead_s = lead_s or max((pool.cold_start_s for pool in pools), default=0.0)
    known = learn(memory.demand, demand, dt_s, now_s, lead_s, _service(memory.demand, spec))
    seen = outlook(known, lead_s)
    fade = math.exp(-dt_s / spec.tuning.budget_window_s)
    num_missed = memory.num_missed * fade + demand.num_missed
    num_requests = memory.num_requests * fade + demand.num_missed + demand.num_met
    spent = budget_spent(num_requests, num_missed, seen.day_per_s, spec)
    offers = tuple([offer_of(pool, seen, spec) for pool in pools])
    miss = miss_price(offers, seen, spent, spec)
    foresight = chosen_foresight(offers, seen, miss.usd, lead_s, known.seen_s)
    backlog_per_s = (demand.num_queued + demand.num_late) / max(lead_s, _MIN_DRAIN_S)
    market = Market(offers, seen, foresight, foresight.forecast_per_s + backlog_per_s, miss)
    cheapest = _wanted(market, pools)
    bound = usd_per_hour_bound(market, seen, spec)
    wanted = _patient(market, pools, cheapest, demand, bound[0], spec.tuning)
    held, bindings, pool_memories = hold(market, pools, wanted, known.seen_s, dt_s, spec.tuning)
    targets, capped_by = within_spend(market, held, bound)
    if capped_by:
        bindings = [capped_by if got < asked else was for got, asked, was in zip(targets, held, bindings, strict=True)]
    name_bounds(market, pools, cheapest, wanted, targets, bindings)
    plan = _plan(market, seen, pools, wanted, targets, bindings, spent)
    return plan, Memory(
        last_s=now_s,
        demand=known,
        num_requests=num_requests,
        num_missed=num_missed,
        pools={
            pool.spec.name: pool_memory if pool_memory.target == target else replace(pool_memory, target=target)
            for pool, pool_memory, target in zip(pools, pool_memories, targets, strict=True)
        },
    )


def _service(known: DemandMemory, spec: Spec) -> Service:
    """How the first primary pool weighs prompts, and what may wait there."""
    if not spec.pools:
        return Service(1.0, spec.ttft_slo_s)
    pool = next((pool for pool in spec.pools if not pool.fallback), spec.pools[0])
    prompt_tokens = known.prompt_tokens
    return Service(
        prompt_share=prompt_share(pool.model, prompt_tokens, known.output_tokens),
        slack_s=max(MIN_SLACK_S, spec.ttft_slo_s - prefill_s(pool.model, prompt_tokens)),
    )


def _wanted(market: Market, pools: Sequence[PoolView]) -> tuple[int, ...]:
    """The cheapest fleet, with a bridge while it starts."""
    cheapest = cheapest_fleet(market, [pool.current for pool in pools])
    awaited = [
        pool
        for number, pool in zip(cheapest, pools, strict=True)
        if number > pool.state.num_ready and not pool.spec.fallback
    ]
    if not awaited:
        return cheapest
    wanted = list(cheapest)
    ready = [min(number, pool.state.num_ready) for number, pool in zip(cheapest, pools, strict=True)]
    for index, pool in enumerate(pools):
        if not pool.spec.fallback:
            continue
        # Starting replicas of other pools are as good as none for as long as this pool's take to start.
        is_long = any(
            other.cold_start_s - max((*other.state.starting_age_s, 0.0)) > _BRIDGE_COLD_STARTS * pool.cold_start_s
            for other in awaited
        )
        if is_long or pool.current > wanted[index]:
            for number in range(wanted[index] + 1, market.offers[index].max_replicas + 1):
                more = [*ready[:index], number, *ready[index + 1 :]]
                less = [*ready[:index], number - 1, *ready[index + 1 :]]
                if market.score(more) >= market.score(less):
                    break
                wanted[index] = number
    return tuple(wanted)


def _patient(
    market: Market,
    pools: Sequence[PoolView],
    wanted: tuple[int, ...],
    demand: Demand,
    usd_per_hour_bound: float,
    tuning: Tuning,
) -> tuple[int, ...]:
    """One replica for whoever has waited long where the cheapest fleet is none at all, or was turned away because
    nothing was up that may serve it. A fallback pool with a replica is no help: it was there, and did not serve.
    """
    num_waiting, prompt_tokens = demand.num_turned_away, demand.turned_away_prompt_tokens
    if demand.oldest_late_s > tuning.patience_s and not any(wanted):
        num_waiting, prompt_tokens = num_waiting + demand.num_late, prompt_tokens + demand.late_prompt_tokens
    if not num_waiting:
        return wanted
    able = [
        index
        for index, (pool, offer) in enumerate(zip(pools, market.offers, strict=True))
        if offer.max_replicas
        and (
            pool.spec.fallback is None
            or (not pool.state.num_ready and prompt_tokens <= num_waiting * pool.spec.fallback.max_prompt_tokens)
        )
        and 3600.0 * (market.usd_per_s(wanted) + offer.usd_per_s) <= usd_per_hour_bound * (1.0 + 1e-9)
    ]
    if not able or any(wanted[index] for index in able):
        return wanted
    # Primary pools first: what brings one late request mostly brings more, too much for a fallback pool.
    chosen = min(able, key=lambda index: (market.offers[index].is_fallback, market.offers[index].usd_per_s))
    return (*wanted[:chosen], 1, *wanted[chosen + 1 :])


def _plan(
    market: Market,
    seen: Outlook,
    pools: Sequence[PoolView],
    wanted: Sequence[int],
    targets: Sequence[int],
    bindings: Sequence[Binding],
    spent: float,
) -> Plan:
    usd_per_hour = market.usd_per_s(targets) * 3600.0
    tokens_per_hour = seen.mix_per_s * (seen.prompt_tokens + seen.output_tokens) * 3600.0
    missed_per_s = market.missed_per_s(targets)
    return Plan(
        targets={pool.spec.name: target for pool, target in zip(pools, targets, strict=True)},
        binding=min(bindings, key=_RANK.index, default=Binding.SLO),
        reasons=tuple(
            [
                Reason(
                    pool=pool.spec.name,
                    target=target,
                    binding=binding,
                    wanted=number,
                    capacity_per_s=offer.capacity_per_s,
                    cold_start_s=pool.cold_start_s,
                    backed_off_until_s=pool.memory.backed_off_until_s,
                )
                for pool, target, binding, number, offer in zip(
                    pools, targets, bindings, wanted, market.offers, strict=True
                )
            ]
        ),
        forecast_per_s=market.rate_per_s,
        miss_usd=market.miss.usd,
        budget_spent=spent,
        expected_miss=min(1.0, max(0.0, missed_per_s / market.rate_per_s)),
        usd_per_hour=usd_per_hour,
        usd_per_million_tokens=usd_per_hour / tokens_per_hour * 1e6 if tokens_per_hour > 0.0 else None,
    )
