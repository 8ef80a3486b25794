"""What the same trace would cost with perfect foresight: references that no online policy is expected to reach.

**Work bound.** Replica-seconds of the cheapest requests, as many as the objective asks for, each on the pool where it
is cheapest, every replica always busy. A strict lower bound in this model, and a loose one.

**DP oracle.** Slots of a minute, fluid capacity `u` of a replica per slot, the fleet free to change between slots,
each start billed its cold start, at most 1 − objective of the requests dropped. The drops are priced by a Lagrange
multiplier (bisection); a Viterbi pass over the fleets finds the cheapest path for each multiplier. ``lower_usd`` is
the dual value: no fleet path of this model is cheaper. ``feasible_usd`` is the cost of the best path found. With u =
1 a replica is busy all the time; u = 0.85 is the load that a single replica bears inside the SLO. Neither is a strict
bound on a real policy: work may move across slots there, and a good router bears more than 0.85.

The work of a request on a pool is prompt · cp + output · (c1 + ckv · context + c0 / b), with b the largest batch inside
the TPOT SLO. A fallback pool bears less than that, because a prompt stops its few sequences for long: its capacity is
given (``fallback_per_s``), found by simulating one such replica (`fallback_capacity_per_s`).
"""

import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulator.fleet import View
from benchmarks.simulator.scenario import Engine, Pool, Replicas, Scenario
from benchmarks.simulator.simulation import simulate
from benchmarks.simulator.trace import Trace
from serving.autoscaler.service_model import longest_prompt_tokens
from serving.router.choice import FALLBACK_TTFT_SHARE

SLOT_S = 60.0
_NUM_BISECTIONS = 26
_PROBE_REQUESTS = 3000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Oracle:
    """A reference's cost."""

    lower_usd: float
    feasible_usd: float
    dropped: float
    """Share of requests that the feasible path drops."""
    usd_per_miss: float
    """The multiplier: what the last dropped request would have cost."""


def work_s(engine: Engine, prompt_tokens: Floats, output_tokens: Floats, tpot_slo_s: float) -> Floats:
    """Replica-seconds of each request in the fullest batch that meets the TPOT SLO."""
    context_tokens = prompt_tokens + 0.5 * output_tokens
    mean_context_tokens = float(np.average(context_tokens, weights=output_tokens))
    per_sequence_s = engine.c1_s_per_sequence + engine.ckv_s_per_token * mean_context_tokens
    batch = max(
        1.0,
        min(
            float(engine.max_num_seqs),
            engine.kv_capacity_tokens / mean_context_tokens,
            (tpot_slo_s - engine.c0_s) / per_sequence_s,
        ),
    )
    return prompt_tokens * engine.cp_s_per_token + output_tokens * (
        engine.c1_s_per_sequence + engine.ckv_s_per_token * context_tokens + engine.c0_s / batch
    )


def work_bound_usd(scenario: Scenario, trace: Trace) -> float:
    """Cost of the cheapest requests, as many as the objective asks for, on replicas that are never idle."""
    prompt_tokens, output_tokens = _lengths(trace)
    usd = np.min(
        [
            work_s(pool.engine, prompt_tokens, output_tokens, scenario.slo.tpot_s) * pool.usd_per_hour / 3600.0
            for pool in scenario.pools
        ],
        axis=0,
    )
    kept = math.ceil(scenario.slo.objective * len(usd))
    return float(np.sort(usd)[:kept].sum())


def dp_oracle(scenario: Scenario, trace: Trace, u: float, fallback_per_s: float = 0.0) -> Oracle:
    """The cheapest path of fleets for one primary pool (the first) and at most one fallback pool.

    ``fallback_per_s``: requests per second, of those that it may serve, that one fallback replica bears inside the SLO.
    """
    fallback = next((pool for pool in scenario.pools if pool.fallback), None)
    problem = _problem(scenario, trace, scenario.primary, fallback, u, fallback_per_s)
    allowed = (1.0 - scenario.slo.objective) * len(trace)
    low, high = 0.0, 1.0
    while _path(problem, high)[1] > allowed and high < 1e6:
        high *= 4.0
    lower_usd, feasible_usd, dropped = 0.0, math.inf, 0.0
    for _ in range(_NUM_BISECTIONS):
        usd_per_miss = math.sqrt(low * high) if low > 0.0 else high / 64.0
        usd, drops = _path(problem, usd_per_miss)
        lower_usd = max(lower_usd, usd + usd_per_miss * (drops - allowed))
        if drops <= allowed:
            high = usd_per_miss
            if usd < feasible_usd:
                feasible_usd, dropped = usd, drops / len(trace)
        else:
            low = usd_per_miss
        if low > 0.0 and high / low < 1.0 + 1e-4:
            break
    return Oracle(lower_usd, feasible_usd, dropped, high)


def fallback_capacity_per_s(scenario: Scenario, trace: Trace) -> float:
    """Requests per second that one fallback replica serves at the objective, by bisection on simulated Poisson arrivals
    of the trace's own requests, as far as they are eligible. 0 without a fallback pool."""
    fallback = next((pool for pool in scenario.pools if pool.fallback), None)
    if fallback is None:
        return 0.0
    longest = _longest(fallback, scenario)
    eligible = [index for index, tokens in enumerate(trace.prompt_tokens) if tokens <= longest]
    if not eligible:
        return 0.0
    one = fallback.model_copy(update={"replicas": Replicas(min=0, max=1, initial=1)})
    alone = scenario.model_copy(update={"pools": (one,), "outages": (), "decision_interval_s": 60.0})
    low, high = 0.001, 2.0
    for _ in range(9):
        rate_per_s = math.sqrt(low * high)
        outcome = simulate(alone, _poisson(trace, eligible, rate_per_s), _Still())
        if outcome.slo >= scenario.slo.objective:
            low = rate_per_s
        else:
            high = rate_per_s
    return low


class _Still:
    """One replica, always."""

    def targets(self, view: View) -> Sequence[int]:
        return [1] * len(view.pools)


def _poisson(trace: Trace, eligible: Sequence[int], rate_per_s: float) -> Trace:
    draw = random.Random(7)
    at_s, times_s, chosen = 0.0, array("d"), []
    for _ in range(_PROBE_REQUESTS):
        times_s.append(at_s)
        chosen.append(draw.choice(eligible))
        at_s += draw.expovariate(rate_per_s)
    return Trace(
        "probe",
        times_s,
        array("l", (trace.prompt_tokens[index] for index in chosen)),
        array("l", (trace.output_tokens[index] for index in chosen)),
    )


def _longest(fallback: Pool, scenario: Scenario) -> float:
    assert fallback.fallback is not None
    return min(
        fallback.fallback.max_prompt_tokens,
        longest_prompt_tokens(fallback.engine.step_model, FALLBACK_TTFT_SHARE * scenario.slo.ttft_s),
    )


@dataclass(frozen=True, slots=True)
class _Problem:
    """Drops of each slot for each fleet, and what fleets and changes of fleet cost."""

    drops: Floats
    """(slot, primary replicas, fallback replicas)"""
    run_usd: Floats
    """(primary replicas, fallback replicas), per slot"""
    primary_start_usd: float
    fallback_start_usd: float


def _problem(
    scenario: Scenario, trace: Trace, primary: Pool, fallback: Pool | None, u: float, fallback_per_s: float
) -> _Problem:
    prompt_tokens, output_tokens = _lengths(trace)
    slots = (np.frombuffer(trace.arrival_s, dtype=np.float64) // SLOT_S).astype(np.int64)
    num_slots = int(slots[-1]) + 1
    primary_work_s = work_s(primary.engine, prompt_tokens, output_tokens, scenario.slo.tpot_s)
    count = np.bincount(slots, minlength=num_slots).astype(np.float64)
    load_s = np.bincount(slots, weights=primary_work_s, minlength=num_slots)
    most = min(primary.replicas.max, math.ceil(float(load_s.max()) / (u * SLOT_S)))
    fleet = np.arange(most + 1, dtype=np.float64)
    # Requests a slot that the primary fleet cannot bear: the excess work in mean requests of that slot.
    mean_s = np.divide(load_s, count, out=np.ones_like(load_s), where=count > 0)
    excess = np.maximum(0.0, load_s[:, None] - fleet[None, :] * u * SLOT_S) / mean_s[:, None]
    num_fallback = fallback.replicas.max if fallback and fallback_per_s > 0.0 else 0
    substitutes = np.arange(num_fallback + 1, dtype=np.float64)
    if fallback and num_fallback:
        eligible = np.bincount(
            slots, weights=(prompt_tokens <= _longest(fallback, scenario)).astype(np.float64), minlength=num_slots
        )
        taken = np.minimum(eligible[:, None], substitutes[None, :] * fallback_per_s * SLOT_S)
        drops = np.maximum(0.0, excess[:, :, None] - taken[:, None, :])
        fallback_usd = fallback.usd_per_hour
        fallback_start_usd = fallback.cold_start.mean_s * fallback_usd / 3600.0
    else:
        drops, fallback_usd, fallback_start_usd = excess[:, :, None], 0.0, 0.0
    hourly = fleet[:, None] * primary.usd_per_hour + substitutes[None, :] * fallback_usd
    return _Problem(
        drops=drops,
        run_usd=hourly * SLOT_S / 3600.0,
        primary_start_usd=primary.cold_start.mean_s * primary.usd_per_hour / 3600.0,
        fallback_start_usd=fallback_start_usd,
    )


def _path(problem: _Problem, usd_per_miss: float) -> tuple[float, float]:
    """(cost, drops) of the path that is cheapest when a drop costs ``usd_per_miss``. The first fleet is free to
    choose."""
    num_slots, num_primary, num_substitutes = problem.drops.shape
    primary_ramp = problem.primary_start_usd * np.arange(num_primary)[:, None]
    substitute_ramp = problem.fallback_start_usd * np.arange(num_substitutes)[None, :]
    rows = np.arange(num_primary)[:, None]
    slot_usd = problem.run_usd[None] + usd_per_miss * problem.drops
    value = slot_usd[0]
    choices = np.empty((num_slots, num_primary, num_substitutes), dtype=np.int64)
    for slot in range(1, num_slots):
        # Starts are priced pool by pool, so the cheapest way into a fleet is found one axis at a time.
        by_primary, from_primary = _cheapest_into(value, primary_ramp, 0)
        by_both, from_substitute = _cheapest_into(by_primary, substitute_ramp, 1)
        choices[slot] = from_primary[rows, from_substitute] * num_substitutes + from_substitute
        value = by_both + slot_usd[slot]
    state = int(np.argmin(value))
    total, drops = float(value.min()), 0.0
    flat_drops = problem.drops.reshape(num_slots, -1)
    flat_choices = choices.reshape(num_slots, -1)
    for slot in range(num_slots - 1, -1, -1):
        drops += float(flat_drops[slot, state])
        if slot:
            state = int(flat_choices[slot, state])
    return total - usd_per_miss * drops, drops


def _cheapest_into(value: Floats, ramp: NDArray[Any], axis: int) -> tuple[Floats, NDArray[np.int64]]:
    """For every fleet the cheapest one to come from along an axis: more replicas are free to stop, fewer start."""
    size = value.shape[axis]
    index = np.arange(size).reshape(ramp.shape)
    low = value - ramp
    rising = np.minimum.accumulate(low, axis=axis)
    from_below = np.maximum.accumulate(np.where(low <= rising, index, 0), axis=axis)
    flipped = np.flip(value, axis)
    falling = np.flip(np.minimum.accumulate(flipped, axis=axis), axis)
    from_above = (size - 1) - np.flip(
        np.maximum.accumulate(np.where(flipped <= np.minimum.accumulate(flipped, axis=axis), index, 0), axis=axis),
        axis,
    )
    up = rising + ramp
    is_up = up < falling
    return np.where(is_up, up, falling), np.where(is_up, from_below, from_above)


def _lengths(trace: Trace) -> tuple[Floats, Floats]:
    return (
        np.array(trace.prompt_tokens, dtype=np.float64),
        np.array(trace.output_tokens, dtype=np.float64),
    )
