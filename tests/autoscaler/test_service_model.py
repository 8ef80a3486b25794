"""What a replica carries, held against limits and against the simulator's figures."""

import pytest

from serving.autoscaler.service_model import (
    capacity_per_s,
    longest_prompt_tokens,
    prefill_s,
    prompt_share,
    spoilt_share,
)
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


def test_the_prompts_share_of_the_work_grows_with_its_length() -> None:
    assert prompt_share(GPU_MODEL, 100, 200) < 0.5 < prompt_share(GPU_MODEL, 2000, 30) < 1.0


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "simulated"), [(612, 126, 0.09), (1153, 213, 0.13), (2054, 28, 0.57)]
)
def test_answers_that_one_more_prompt_spoils_are_about_as_many_as_simulated(
    prompt_tokens: float, output_tokens: float, simulated: float
) -> None:
    share = spoilt_share(CPU_MODEL, prefill_s(CPU_MODEL, prompt_tokens), output_tokens, 0.15)
    assert share == pytest.approx(simulated, rel=0.5)


def test_every_answer_is_spoilt_where_the_tpot_has_no_room() -> None:
    assert spoilt_share(CPU_MODEL, 1.0, 100, 0.05) == 1.0
