"""The reference fleet, and small traces."""

import random
from array import array
from collections.abc import Callable

import pytest

from benchmarks.simulator.__main__ import SCENARIO
from benchmarks.simulator.scenario import Scenario, read_scenario
from benchmarks.simulator.trace import Trace


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    return read_scenario(SCENARIO)


@pytest.fixture(scope="session")
def poisson() -> Callable[..., Trace]:
    """A trace of Poisson arrivals; same arguments, same trace."""

    def make(rate_per_s: float, span_s: float, prompt_tokens: int = 800, output_tokens: int = 100) -> Trace:
        draw = random.Random(3)
        times_s = array("d", [0.0])
        while times_s[-1] < span_s:
            times_s.append(times_s[-1] + draw.expovariate(rate_per_s))
        number = len(times_s)
        prompts = array("l", (1 + int(draw.expovariate(1.0 / prompt_tokens)) for _ in range(number)))
        outputs = array("l", (1 + int(draw.expovariate(1.0 / output_tokens)) for _ in range(number)))
        return Trace("poisson", times_s, prompts, outputs)

    return make
