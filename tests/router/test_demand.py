"""What one gateway has seen of demand."""

import pytest

from serving.autoscaler.types import prompt_bucket
from serving.router.demand import DemandMeter


def test_before_anything_was_seen_there_is_a_guess() -> None:
    demand = DemandMeter()
    assert demand.expected_prompt_tokens(4000) == 1000
    assert demand.expected_output_tokens(None) == 128.0


def test_a_prompt_has_at_least_one_token_and_an_answer_at_most_what_was_asked_for() -> None:
    demand = DemandMeter()
    assert demand.expected_prompt_tokens(0) == 1
    assert demand.expected_output_tokens(16) == 16
    assert demand.expected_output_tokens(100_000) == 128.0


def test_lengths_are_learned_from_what_the_engine_has_counted() -> None:
    demand = DemandMeter()
    for _ in range(400):
        demand.on_finish(num_bytes=1000, prompt_tokens=500, output_tokens=40)
    assert demand.expected_prompt_tokens(1000) == pytest.approx(500, rel=0.01)
    assert demand.expected_output_tokens(None) == pytest.approx(40, rel=0.01)


def test_an_answer_without_a_count_of_its_prompt_teaches_nothing_of_prompts() -> None:
    demand = DemandMeter()
    for _ in range(400):
        demand.on_finish(num_bytes=1000, prompt_tokens=0, output_tokens=40)
    assert demand.expected_prompt_tokens(4000) == 1000


def test_the_first_answers_replace_the_guess() -> None:
    demand = DemandMeter()
    for output_tokens in (900, 1100):
        demand.on_finish(num_bytes=1000, prompt_tokens=500, output_tokens=output_tokens)
    assert demand.expected_output_tokens(None) == pytest.approx(1000)
    assert demand.expected_prompt_tokens(1000) == 500


def test_one_odd_request_among_many_moves_little() -> None:
    demand = DemandMeter()
    for _ in range(100):
        demand.on_finish(num_bytes=1000, prompt_tokens=250, output_tokens=100)
    demand.on_finish(num_bytes=10, prompt_tokens=10, output_tokens=1000)
    assert demand.expected_output_tokens(None) < 120.0
    assert demand.expected_prompt_tokens(4000) < 1100


def test_arrivals_and_outcomes_are_counted() -> None:
    demand = DemandMeter()
    for prompt_tokens in (1, 300, 300):
        demand.on_arrival(prompt_tokens)
    demand.on_finish(1000, 300, 20)
    for is_met in (True, True, False):
        demand.on_slo(is_met)
    assert (demand.num_arrived, demand.prompt_tokens) == (3, 601)
    assert demand.prompts[prompt_bucket(300)] == 2
    assert sum(demand.prompts) == 3
    assert (demand.num_finished, demand.output_tokens) == (1, 20)
    assert (demand.num_met, demand.num_missed) == (2, 1)
