"""Capacity and loss in closed form, held against their limits and against the simulator's figures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.autoscaler.service_model import capacity_per_s, longest_prompt_tokens, loss_per_s, prefill_s
from tests.autoscaler.world import CPU_MODEL, GPU_MODEL


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "simulated_per_s"), [(1153, 213, 6.0), (2054, 28, 4.0), (612, 126, 12.0)]
)
def test_capacity_is_just_above_what_the_simulator_serves_at_99_percent(
    prompt_tokens: float, output_tokens: float, simulated_per_s: float
) -> None:
    capacity = capacity_per_s(GPU_MODEL, prompt_tokens, output_tokens, 0.15)
    assert simulated_per_s < capacity < 1.1 * simulated_per_s


def test_a_tighter_tpot_costs_capacity() -> None:
    assert capacity_per_s(GPU_MODEL, 1000, 200, 0.05) < capacity_per_s(GPU_MODEL, 1000, 200, 0.15)


def test_the_longest_prompt_is_done_in_time() -> None:
    for model in (GPU_MODEL, CPU_MODEL):
        tokens = longest_prompt_tokens(model, 4.0)
        assert prefill_s(model, tokens) == pytest.approx(4.0, abs=0.1)
    assert longest_prompt_tokens(CPU_MODEL, 0.01) == 0.0


def test_loss_at_its_limits() -> None:
    assert loss_per_s(0.0, 5.0, 4.0, 2.0) == 0.0
    assert loss_per_s(3.0, 0.0, 4.0, 2.0) == 3.0
    assert loss_per_s(0.1, 1000.0, 4.0, 2.0) == 0.0
    assert loss_per_s(1000.0, 1.0, 1000.0, 1.0) == pytest.approx(999.0)
    assert loss_per_s(5.0, 5.0, 4.0, 2.0) == pytest.approx(10.0 / 40.0)
    assert loss_per_s(1000.0, 900.0, 500.0, 1.0) == pytest.approx(100.0)


@given(load=st.floats(0.01, 100.0), capacity=st.floats(0.01, 100.0), dispersion=st.floats(1.0, 20.0))
def test_loss_is_between_the_excess_and_the_load_and_falls_with_capacity(
    load: float, capacity: float, dispersion: float
) -> None:
    lost = loss_per_s(load, capacity, 4.0, dispersion)
    assert max(0.0, load - capacity) - 1e-9 <= lost <= load
    assert loss_per_s(load, 1.1 * capacity, 4.0, dispersion) <= lost + 1e-9
    assert math.isfinite(lost)
