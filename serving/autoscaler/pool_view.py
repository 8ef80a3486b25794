"""One pool as `decide` sees it: what was configured, what is reported, and what was learned of it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from serving.autoscaler.clean import clean_price, clean_state
from serving.autoscaler.demand import Mean
from serving.autoscaler.memory import Memory, PoolMemory
from serving.autoscaler.tuning import Tuning
from serving.autoscaler.types import Fleet, PoolSpec, PoolState, Prices, Work
from serving.router.prediction import StepModel

_Z90 = 1.28
_FADE_OF_SIGHTING = 0.9
"""What is left of older cold starts and speeds after one more was seen."""
_NOT_THERE = PoolState(0)
_NOTHING_SEEN = PoolMemory()


class PoolView(NamedTuple):
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


def look(spec: PoolSpec, fleet: Fleet, prices: Prices, memory: Memory, now_s: float, tuning: Tuning) -> PoolView:
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
        known = _backed_off(known, state, now_s, _timeout_s(known, cold_start_s, tuning), tuning)
    is_off = known.backed_off_until_s is not None
    num_replicas = state.num_ready + len(state.starting_age_s)
    bound = min(spec.max_replicas, known.cap) if is_off else spec.max_replicas
    return PoolView(
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


def _timeout_s(memory: PoolMemory, cold_start_s: float, tuning: Tuning) -> float:
    """How long a replica may take to start before it is given up."""
    is_first = memory.cold_start.weight <= 0.0
    least_s = tuning.first_pending_timeout_s if is_first else tuning.min_pending_timeout_s
    timeout_s = max(least_s, tuning.pending_timeout_cold_starts * cold_start_s)
    num_doublings = min(20, max(0, memory.num_failures - tuning.num_patient_failures))
    return max(timeout_s, min(tuning.max_pending_timeout_s, timeout_s * 2.0**num_doublings))


def _backed_off(memory: PoolMemory, state: PoolState, now_s: float, timeout_s: float, tuning: Tuning) -> PoolMemory:
    """Notice replicas that start for too long, starts that came through, and a back-off that is over."""
    if state.num_came_up or state.cold_starts_s:
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
