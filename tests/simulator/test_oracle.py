"""The offline references, against brute force and against each other."""

import itertools
from array import array
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.simulator.oracle import _path, _Problem, dp_oracle, fallback_capacity_per_s, work_bound_usd
from benchmarks.simulator.scenario import Scenario
from benchmarks.simulator.trace import Trace


def test_the_path_is_the_cheapest_of_all() -> None:
    draw = np.random.default_rng(5)
    for _ in range(20):
        slots, primary, substitutes = 4, 3, 2
        problem = _Problem(
            drops=draw.uniform(0.0, 10.0, (slots, primary, substitutes)),
            run_usd=draw.uniform(0.0, 1.0, (primary, substitutes)),
            primary_start_usd=0.7,
            fallback_start_usd=0.2,
        )
        fleets = list(itertools.product(range(primary), range(substitutes)))
        found = []
        for path in itertools.product(fleets, repeat=slots):
            usd = sum(problem.run_usd[fleet] for fleet in path)
            for before, after in itertools.pairwise(path):
                usd += 0.7 * max(0, after[0] - before[0]) + 0.2 * max(0, after[1] - before[1])
            drops = sum(problem.drops[slot][fleet] for slot, fleet in enumerate(path))
            found.append((usd + 0.1 * drops, usd, drops))
        best = min(found)
        assert _path(problem, 0.1) == pytest.approx((best[1], best[2]))


def test_references_are_in_their_order(scenario: Scenario, poisson: Callable[..., Trace]) -> None:
    trace = poisson(7.0, 1800.0)
    bound = work_bound_usd(scenario, trace)
    full = dp_oracle(scenario.only("gpu"), trace, 1.0)
    real = dp_oracle(scenario.only("gpu"), trace, 0.85)
    both = dp_oracle(scenario, trace, 0.85, 0.1)
    assert bound <= full.lower_usd <= full.feasible_usd
    assert full.lower_usd <= real.lower_usd
    assert both.lower_usd <= real.lower_usd + 1e-6
    assert real.dropped <= 0.01


def test_capacity_of_a_fallback_replica(scenario: Scenario, poisson: Callable[..., Trace]) -> None:
    trace = poisson(1.0, 600.0, prompt_tokens=300, output_tokens=100)
    assert 0.01 < fallback_capacity_per_s(scenario, trace) < 1.0
    assert fallback_capacity_per_s(scenario.only("gpu"), trace) == 0.0
    long = Trace("long", array("d", [0.0]), array("l", [7000]), array("l", [10]))
    assert fallback_capacity_per_s(scenario, long) == 0.0
