"""How many replicas each pool should have: a pure decision from what is known now.

Two prices decide. A replica costs what its pool charges. A missed request costs a *shadow price*, which rises while the
error budget is being overspent and falls while it is not (the multiplier of a Lagrangian whose constraint is the SLO's
objective). The plan is the fleet with the least sum of both for the demand expected when a replica asked for now would
be ready (`demand.py`, `score.py`). From this one rule follow the headroom (as much as its misses are worth), the bridge
(a fallback pool is worth starting while the primary one starts), and the primary pool's way to zero (when a fallback
pool alone is cheaper, misses included).

Around it stand what no forecast can know:

- Up at once; replicas that start count as if they were there. Down only when less was enough for as long as a cold
  start takes, only to the most that was wanted in that time, and only if it still is at the highest recent load and
  with the replicas of other pools that are ready by then.
- A replica that starts for too long means that the pool has no capacity: it is left at what runs, for a time that
  doubles with each failure, and the plan is made with the other pools.
- After a restart nothing is scaled down until enough was seen.
- A late request is not left alone: with nothing up, the cheapest pool that can serve it starts one replica.

Inputs that are no numbers count as not known. The function never raises for what it is told.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from serving.autoscaler.clean import clean_demand, clean_number, clean_price, clean_state
from serving.autoscaler.demand import (
    DemandMemory,
    Foresight,
    Mean,
    Outlook,
    Service,
    learn,
    mean_up_to,
    outlook,
    share_up_to,
)
from serving.autoscaler.memory import Memory, PoolMemory
from serving.autoscaler.score import Market, MissPrice, PoolOffer, cheapest_fleet
from serving.autoscaler.service_model import (
    capacity_per_s,
    longest_prompt_tokens,
    prefill_s,
    prompt_share,
    spoilt_share,
)
from serving.autoscaler.tuning import Tuning
from serving.autoscaler.types import Binding, Demand, Fleet, Plan, PoolSpec, PoolState, Prices, Reason, Spec, Work
from serving.router.prediction import StepModel

_MAX_GAP_S = 600.0
"""A longer time between two decisions says nothing of the rate inside it."""
_Z90 = 1.28
_BRIDGE_COLD_STARTS = 2.0
"""A bridge is begun when what it bridges to is still away for this many of its own cold starts."""
_MIN_SLACK_S = 0.1
_MIN_DRAIN_S = 30.0
"""What waits is planned to be served within a lead time, or within this where that is longer."""
_FADE_OF_SIGHTING = 0.9
"""What is left of older cold starts and speeds after one more was seen."""
_MIN_RATE_PER_S = 1e-4
_NOT_THERE = PoolState(0)
_NOTHING_SEEN = PoolMemory()


class _Pool(NamedTuple):
    """One pool with everything known of it."""

    spec: PoolSpec
    state: PoolState
    memory: PoolMemory
    """Cold starts and failures taken in."""
    speed: Mean
    """Work taken in."""
    usd_per_hour: float
    cold_start_s: float
    """90th percentile."""
    current: int
    """Replicas asked for and not given up."""
    max_replicas: int
    """Now: a pool that is backed off from, or that cannot be placed, has less than its bound."""


def decide(
    now_s: float, fleet: Fleet, demand: Demand, prices: Prices, spec: Spec, memory: Memory
) -> tuple[Plan, Memory]:
    """The plan, and what to remember for the next decision."""
    last_s = memory.last_s
    now_s = clean_number(now_s, default=last_s or 0.0, least=last_s or 0.0)
    demand = clean_demand(demand)
    dt_s = min(_MAX_GAP_S, now_s - last_s if last_s is not None else demand.interval_s)
    pools = [_look(pool, fleet, prices, memory, now_s, spec.tuning) for pool in spec.pools]
    lead_s = max((pool.cold_start_s for pool in pools if not pool.spec.fallback), default=0.0)
    lead_s = lead_s or max((pool.cold_start_s for pool in pools), default=0.0)
    known = learn(memory.demand, demand, dt_s, now_s, lead_s, _service(memory.demand, spec))
    seen = outlook(known, lead_s)
    fade = math.exp(-dt_s / spec.tuning.budget_window_s)
    num_missed = memory.num_missed * fade + demand.num_missed
    num_requests = memory.num_requests * fade + demand.num_missed + demand.num_met
    spent = _budget_spent(num_requests, num_missed, seen.day_per_s, spec)
    offers = tuple([_offer(pool, seen, spec) for pool in pools])
    miss = _miss_price(offers, seen, spent, spec)
    foresight = _foresight(offers, seen, miss.usd, lead_s)
    backlog_per_s = (demand.num_queued + demand.num_late) / max(lead_s, _MIN_DRAIN_S)
    market = Market(offers, seen, foresight, foresight.forecast_per_s + backlog_per_s, miss)
    cheapest = _wanted(market, pools)
    wanted = _patient(market, cheapest, demand, spec.tuning)
    held, bindings, pool_memories = _hold(market, pools, wanted, known.seen_s, dt_s, spec.tuning)
    targets, capped_by = _within_spend(market, held, _usd_per_hour_bound(offers, seen, spec))
    if capped_by:
        bindings = [capped_by if got < asked else was for got, asked, was in zip(targets, held, bindings, strict=True)]
    _name_bounds(market, pools, cheapest, wanted, targets, bindings)
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


# ------------------------------------------------------------------------------------------------------ what is known


def _look(spec: PoolSpec, fleet: Fleet, prices: Prices, memory: Memory, now_s: float, tuning: Tuning) -> _Pool:
    """One pool: cold starts and speeds taken in, failed starts noticed."""
    state = clean_state(fleet.get(spec.name, _NOT_THERE))
    known = memory.pools.get(spec.name, _NOTHING_SEEN)
    if state.cold_starts_s:
        known = _sighted(known, state.cold_starts_s)
    mean_s, deviation_s = max(1.0, spec.cold_start_s), 0.0
    if known.cold_start.weight > 0.0:
        mean_s = known.cold_start.value
        deviation_s = math.sqrt(max(0.0, known.cold_start_square.value - mean_s * mean_s))
    cold_start_s = mean_s + _Z90 * max(deviation_s, 0.1 * mean_s)
    if state.cold_starts_s or state.starting_age_s or known.backed_off_until_s is not None:
        timeout_s = max(tuning.min_pending_timeout_s, tuning.pending_timeout_cold_starts * cold_start_s)
        known = _backed_off(known, state, now_s, timeout_s, tuning)
    is_off = known.backed_off_until_s is not None
    num_replicas = state.num_ready + len(state.starting_age_s)
    bound = min(spec.max_replicas, known.cap) if is_off else spec.max_replicas
    return _Pool(
        spec=spec,
        state=state,
        memory=known,
        speed=_speed(known.speed, state.work, spec.model),
        usd_per_hour=clean_price(prices, spec.name),
        cold_start_s=cold_start_s,
        current=known.cap if is_off else known.target if known.target >= 0 else num_replicas,
        max_replicas=bound if state.is_placeable else min(bound, state.num_ready),
    )


def _sighted(memory: PoolMemory, cold_starts_s: Sequence[float]) -> PoolMemory:
    """Cold starts as seen since the last decision."""
    for cold_start_s in cold_starts_s:
        memory = replace(
            memory,
            cold_start=memory.cold_start.after(cold_start_s, _FADE_OF_SIGHTING),
            cold_start_square=memory.cold_start_square.after(cold_start_s**2, _FADE_OF_SIGHTING),
        )
    return memory


def _speed(known: Mean, work: Work, model: StepModel) -> Mean:
    """Modelled over measured time, with the steps since the last decision."""
    if work.busy_s <= 1.0 or work.num_steps <= 0:
        return known
    modelled_s = (
        work.num_steps * model.c0_s
        + work.decode_tokens * model.c1_s_per_sequence
        + work.kv_token_steps * model.ckv_s_per_token
        + work.prefill_tokens * model.cp_s_per_token
    )
    return known.after(min(4.0, max(0.25, modelled_s / work.busy_s)), math.exp(-work.busy_s / 60.0))


def _backed_off(memory: PoolMemory, state: PoolState, now_s: float, timeout_s: float, tuning: Tuning) -> PoolMemory:
    """Notice replicas that start for too long, starts that came through, and a back-off that is over."""
    if state.cold_starts_s:
        return replace(memory, num_failures=0, backed_off_until_s=None)
    if memory.backed_off_until_s is not None:
        if now_s >= memory.backed_off_until_s:
            return replace(memory, backed_off_until_s=None, target=memory.cap)
        return replace(memory, cap=min(memory.cap, max(state.num_ready, 0)))
    if any(age_s > timeout_s for age_s in state.starting_age_s):
        wait_s = min(tuning.max_back_off_s, tuning.back_off_s * 2.0 ** min(memory.num_failures, 20))
        return replace(
            memory, num_failures=memory.num_failures + 1, backed_off_until_s=now_s + wait_s, cap=state.num_ready
        )
    return memory


def _service(known: DemandMemory, spec: Spec) -> Service:
    """How the first primary pool weighs prompts, and what may wait there."""
    if not spec.pools:
        return Service(1.0, spec.ttft_slo_s)
    pool = next((pool for pool in spec.pools if not pool.fallback), spec.pools[0])
    prompt_tokens = known.prompt_tokens
    return Service(
        prompt_share=prompt_share(pool.model, prompt_tokens, known.output_tokens),
        slack_s=max(_MIN_SLACK_S, spec.ttft_slo_s - prefill_s(pool.model, prompt_tokens)),
    )


# ------------------------------------------------------------------------------------------------------------- prices


def _budget_spent(num_requests: float, num_missed: float, day_per_s: float, spec: Spec) -> float:
    """Misses over allowed misses in the budget's window.

    A fresh memory starts as if some time had passed with the budget spent exactly: it neither saves nor spends at
    first.
    """
    tuning = spec.tuning
    allowed = max(1e-6, (1.0 - spec.objective) * tuning.budget_share)
    prior = max(tuning.min_prior_requests, tuning.budget_prior_s * day_per_s)
    return (num_missed + prior * allowed) / (num_requests + prior) / allowed


def _miss_price(offers: Sequence[PoolOffer], seen: Outlook, spent: float, spec: Spec) -> MissPrice:
    """Shadow price of a miss.

    With the budget spent exactly, one replica is worth its price if it saves the misses allowed at a load halfway, on
    a logarithmic scale, between the mean load and what one replica carries. That follows the multiplier of the
    offline optimum (`benchmarks/simulator/oracle.py`), which hardly depends on the load: a small fleet can afford
    more misses per replica than its mean load allows, a big one fewer.
    """
    tuning = spec.tuning
    primary = [offer for offer in offers if not offer.is_fallback] or offers
    if not primary:
        return MissPrice(0.0, 0.0)
    cheapest = min(primary, key=lambda offer: offer.usd_per_s / offer.capacity_per_s)
    halfway_per_s = math.sqrt(max(_MIN_RATE_PER_S, seen.day_per_s) * cheapest.capacity_per_s)
    allowed_per_s = max(1e-6, 1.0 - spec.objective) * tuning.budget_share * halfway_per_s
    gain = tuning.price_gain if spent > 1.0 else tuning.saving_gain
    pressure = min(tuning.max_pressure, max(-tuning.max_saving, gain * (spent - 1.0)))
    base_usd = max(cheapest.usd_per_s, 1e-9) * tuning.price_scale / allowed_per_s
    alone = min(tuning.max_pressure_without_primary, max(pressure, tuning.gain_without_primary * (spent - 1.0)))
    return MissPrice(base_usd * math.exp(pressure), base_usd * math.exp(alone))


def _foresight(offers: Sequence[PoolOffer], seen: Outlook, miss_usd: float, lead_s: float) -> Foresight:
    """The way to foretell by which the cheapest primary pool would have served at the least cost."""
    usd_per_capacity = min(
        (offer.usd_per_s / offer.capacity_per_s for offer in offers if not offer.is_fallback), default=0.0
    )
    nimble_usd = seen.nimble.usd_per_request(usd_per_capacity, miss_usd, lead_s)
    steady_usd = seen.steady.usd_per_request(usd_per_capacity, miss_usd, lead_s)
    return seen.steady if steady_usd < _STEADIER * nimble_usd else seen.nimble


_STEADIER = 0.85
"""The steady view must promise at least this much less cost."""


def _offer(pool: _Pool, seen: Outlook, spec: Spec) -> PoolOffer:
    """What one replica of the pool does for the present mix."""
    model, fallback = pool.spec.model, pool.spec.fallback
    speed = pool.speed.value if pool.speed.weight > 0.0 else 1.0
    prompt_tokens, share = seen.prompt_tokens, 1.0
    if fallback is not None:
        longest = min(
            fallback.max_prompt_tokens, longest_prompt_tokens(model, _FALLBACK_SHARE * spec.ttft_slo_s * speed)
        )
        prompt_tokens, share = mean_up_to(seen.buckets, longest), share_up_to(seen.buckets, longest)
    alone_s = prefill_s(model, prompt_tokens) / speed
    start_usd = pool.cold_start_s * pool.usd_per_hour / 3600.0
    return PoolOffer(
        usd_per_s=pool.usd_per_hour / 3600.0,
        min_replicas=min(pool.spec.min_replicas, pool.max_replicas),
        max_replicas=pool.max_replicas,
        capacity_per_s=speed * capacity_per_s(model, prompt_tokens, seen.output_tokens, spec.tpot_slo_s * speed),
        slack_s=max(_MIN_SLACK_S, spec.ttft_slo_s - alone_s),
        share=share,
        prefill_s=alone_s,
        current=pool.current,
        start_usd_per_s=start_usd / spec.tuning.stay_s,
        stop_usd_per_s=start_usd / spec.tuning.gone_s,
        spoilt_share=spoilt_share(model, alone_s, seen.output_tokens, spec.tpot_slo_s * speed),
        is_fallback=fallback is not None,
    )


_FALLBACK_SHARE = 0.8
"""As in `router/choice.py`: the router sends a fallback replica what it promises in this share of the time."""


# -------------------------------------------------------------------------------------------------------- what it wants


def _wanted(market: Market, pools: Sequence[_Pool]) -> tuple[int, ...]:
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


def _patient(market: Market, wanted: tuple[int, ...], demand: Demand, tuning: Tuning) -> tuple[int, ...]:
    """One replica for whoever has waited long, where the cheapest fleet is none at all."""
    if any(wanted) or not demand.num_late or demand.oldest_late_s <= tuning.patience_s:
        return wanted
    able = [index for index, offer in enumerate(market.offers) if offer.max_replicas]
    if not able:
        return wanted
    chosen = min(able, key=lambda index: (market.offers[index].is_fallback, market.offers[index].usd_per_s))
    return tuple(int(index == chosen) for index in range(len(wanted)))


def _hold(
    market: Market,
    pools: Sequence[_Pool],
    wanted: Sequence[int],
    seen_s: float,
    dt_s: float,
    tuning: Tuning,
) -> tuple[list[int], list[Binding], list[PoolMemory]]:
    """Up at once; down late, and only to what still holds at the highest recent load."""
    targets = [max(number, pool.current) for number, pool in zip(wanted, pools, strict=True)]
    bindings: list[Binding] = []
    memories: list[PoolMemory] = []
    for index, pool in enumerate(pools):
        number, current = wanted[index], min(pool.current, pool.max_replicas)
        regret, since_down_s = _regretted(pool, number > current, dt_s, tuning)
        unneeded_s, least = pool.memory.unneeded_s, pool.memory.wanted_since
        targets[index] = max(number, current)
        binding = Binding.SLO
        if number >= current:
            # A moment of need takes back as much of the time that less was enough.
            unneeded_s = max(0.0, unneeded_s - dt_s)
            least = least if unneeded_s else 0
        else:
            unneeded_s += dt_s
            least = max(number, least)
            hold_s = max(tuning.min_hold_s, tuning.hold_cold_starts * pool.cold_start_s) * 2.0**regret
            if seen_s < tuning.relearn_s and not pool.spec.fallback:
                binding = Binding.RELEARNING
            elif unneeded_s < hold_s:
                binding = Binding.HOLD
            else:
                targets[index] = _still_enough(market.at_present(), pools, targets, index, least, tuning)
                is_less = targets[index] < current
                binding = Binding.SLO if is_less else Binding.HOLD
                since_down_s = 0.0 if is_less else since_down_s
                unneeded_s, least = 0.0, 0
        bindings.append(binding)
        memories.append(
            PoolMemory(
                target=targets[index],
                unneeded_s=unneeded_s,
                wanted_since=least,
                since_down_s=since_down_s,
                regret=regret,
                cold_start=pool.memory.cold_start,
                cold_start_square=pool.memory.cold_start_square,
                speed=pool.speed,
                num_failures=pool.memory.num_failures,
                backed_off_until_s=pool.memory.backed_off_until_s,
                cap=pool.memory.cap,
            )
        )
    return targets, bindings, memories


def _regretted(pool: _Pool, is_up: bool, dt_s: float, tuning: Tuning) -> tuple[float, float | None]:
    """(regret, time since the last step down); whether a step up takes back a step down that was made a moment ago."""
    memory = pool.memory
    regret = memory.regret * math.exp(-dt_s / tuning.regret_memory_s)
    if memory.since_down_s is None:
        return regret, None
    since_down_s = memory.since_down_s + dt_s
    if not is_up:
        return regret, since_down_s
    if since_down_s < tuning.regret_cold_starts * pool.cold_start_s:
        regret = min(tuning.max_regret, regret + 1.0)
    return regret, None


def _still_enough(
    market: Market, pools: Sequence[_Pool], targets: Sequence[int], index: int, least: int, tuning: Tuning
) -> int:
    """The smallest number of replicas, ``least`` or more, that pays at this load with what else is ready."""
    there = [min(target, pool.state.num_ready) for target, pool in zip(targets, pools, strict=True)]
    number = targets[index]
    there[index] = number
    usd = market.score(there)
    while number > least:
        there[index] = number - 1
        fewer_usd = market.score(there)
        if fewer_usd > usd - tuning.step_down_margin * market.offers[index].usd_per_s:
            break
        number, usd = number - 1, fewer_usd
    return number


# -------------------------------------------------------------------------------------------------------------- bounds


def _usd_per_hour_bound(offers: Sequence[PoolOffer], seen: Outlook, spec: Spec) -> tuple[float, Binding]:
    """The most that may be spent per hour, and which setting says so."""
    bound, binding = math.inf, Binding.MAX_USD_PER_HOUR
    if spec.max_usd_per_hour is not None:
        bound = clean_number(spec.max_usd_per_hour, default=math.inf)
    if spec.target_usd_per_million_tokens is not None:
        target = clean_number(spec.target_usd_per_million_tokens, default=math.inf)
        tokens_per_s = seen.mix_per_s * (seen.prompt_tokens + seen.output_tokens)
        # One replica cannot be halved: the cheapest that serves everything is always allowed.
        able = [offer for offer in offers if not offer.is_fallback] or offers
        least = min((offer.usd_per_s for offer in able), default=0.0) * 3600.0
        by_target = max(least, target * tokens_per_s * 3600.0 / 1e6)
        if by_target < bound:
            bound, binding = by_target, Binding.TARGET_USD_PER_MILLION_TOKENS
    return bound, binding


def _within_spend(
    market: Market, targets: Sequence[int], bound: tuple[float, Binding]
) -> tuple[list[int], Binding | None]:
    """Give up what is worth least until the bound holds, and buy what still fits. A pool's own minimum stays."""
    usd_per_hour, binding = bound
    fleet = list(targets)
    capped_by = None
    while usd_per_hour < math.inf and market.usd_per_s(fleet) * 3600.0 > usd_per_hour * (1.0 + 1e-9):
        options = [
            index
            for index, offer in enumerate(market.offers)
            if fleet[index] > offer.min_replicas and offer.usd_per_s > 0.0
        ]
        if not options:
            break
        capped_by = binding
        worst = min(options, key=lambda index: market.score([*fleet[:index], fleet[index] - 1, *fleet[index + 1 :]]))
        fleet[worst] -= 1
    for index, offer in enumerate(market.offers if capped_by else ()):
        more = [*fleet[:index], fleet[index] + 1, *fleet[index + 1 :]]
        while (
            more[index] <= offer.max_replicas
            and market.usd_per_s(more) * 3600.0 <= usd_per_hour
            and market.score(more) < market.score(fleet)
        ):
            fleet = more
            more = [*fleet[:index], fleet[index] + 1, *fleet[index + 1 :]]
    return fleet, capped_by


def _name_bounds(
    market: Market,
    pools: Sequence[_Pool],
    cheapest: Sequence[int],
    wanted: Sequence[int],
    targets: Sequence[int],
    bindings: list[Binding],
) -> None:
    """Put the name of the bound that a pool is at into ``bindings``."""
    for index, pool in enumerate(pools):
        offer = market.offers[index]
        if bindings[index] in _SPENDING:
            continue
        if targets[index] >= offer.max_replicas and _wants_more(market, wanted, index):
            is_bound = offer.max_replicas == pool.spec.max_replicas
            bindings[index] = Binding.REPLICAS_MAX if is_bound else Binding.CAPACITY
        elif bindings[index] is Binding.SLO and 0 < targets[index] == offer.min_replicas:
            bindings[index] = Binding.REPLICAS_MIN
        elif bindings[index] is Binding.SLO and wanted[index] > cheapest[index]:
            bindings[index] = Binding.PATIENCE


_SPENDING = (Binding.MAX_USD_PER_HOUR, Binding.TARGET_USD_PER_MILLION_TOKENS)


def _wants_more(market: Market, fleet: Sequence[int], index: int) -> bool:
    if fleet[index] < market.offers[index].max_replicas:
        return False
    return market.score([*fleet[:index], fleet[index] + 1, *fleet[index + 1 :]]) < market.score(fleet)


# ------------------------------------------------------------------------------------------------------------- answer

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


def _plan(
    market: Market,
    seen: Outlook,
    pools: Sequence[_Pool],
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
        expected_miss=min(1.0, missed_per_s / market.rate_per_s),
        usd_per_hour=usd_per_hour,
        usd_per_million_tokens=usd_per_hour / tokens_per_hour * 1e6 if tokens_per_hour > 0.0 else None,
    )
