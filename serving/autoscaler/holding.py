"""What keeps a fleet from shrinking too soon: up at once, down late."""

import math
from collections.abc import Sequence

from serving.autoscaler.memory import PoolMemory
from serving.autoscaler.pool_view import PoolView
from serving.autoscaler.score import Market
from serving.autoscaler.tuning import Tuning
from serving.autoscaler.types import Binding


def hold(
    market: Market,
    pools: Sequence[PoolView],
    wanted: Sequence[int],
    seen_s: float,
    dt_s: float,
    tuning: Tuning,
) -> tuple[list[int], list[Binding], list[PoolMemory]]:
    """Up at once; down late, and only to what still holds at the highest recent load. What is to be the only replica is
    seen through its start: whoever it was started for comes back."""
    only = _only_one_coming(pools) if not any(wanted) else None
    targets = [max(number, pool.current) for number, pool in zip(wanted, pools, strict=True)]
    bindings: list[Binding] = []
    memories: list[PoolMemory] = []
    for index, pool in enumerate(pools):
        number, current = wanted[index], min(pool.current, pool.max_replicas)
        is_kept = index == only and not number
        number = 1 if is_kept else number
        regret, since_down_s = _regretted(pool, number > current, dt_s, tuning)
        unneeded_s, least = pool.memory.unneeded_s, pool.memory.wanted_since
        targets[index] = max(number, current)
        binding = Binding.HOLD if is_kept else Binding.SLO
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


def _only_one_coming(pools: Sequence[PoolView]) -> int | None:
    """The pool whose replica will be ready first, where none is yet."""
    if any(pool.state.num_ready for pool in pools):
        return None
    coming = [
        (pool.cold_start_s - max(pool.state.starting_age_s), index)
        for index, pool in enumerate(pools)
        if pool.state.starting_age_s and pool.max_replicas
    ]
    return min(coming)[1] if coming else None


def _regretted(pool: PoolView, is_up: bool, dt_s: float, tuning: Tuning) -> tuple[float, float | None]:
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
    market: Market, pools: Sequence[PoolView], targets: Sequence[int], index: int, least: int, tuning: Tuning
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
