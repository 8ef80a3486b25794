"""What is learned of demand."""

import pytest

from serving.autoscaler.demand import RATIOS, DemandMemory, learn, mean_up_to, outlook, share_up_to
from serving.autoscaler.types import NUM_PROMPT_BUCKETS, Demand, prompt_bucket
from tests.autoscaler.world import demand


def _after(loads: list[Demand], lead_s: float = 180.0) -> DemandMemory:
    memory, now_s = DemandMemory(), 0.0
    for load in loads:
        now_s += load.interval_s
        memory = learn(memory, load, load.interval_s, now_s, lead_s)
    return memory


def test_a_steady_load_is_foretold_and_trusted() -> None:
    seen = outlook(_after([demand(6.0)] * 2000), 180.0)
    assert seen.forecast_per_s == pytest.approx(6.0, rel=0.01)
    assert seen.prompt_tokens == pytest.approx(1000.0, rel=0.01)
    assert seen.output_tokens == pytest.approx(200.0, rel=0.01)
    assert dict(seen.ratios)[1.0] > 0.7


def test_a_rising_load_is_foretold_above_its_present_mean() -> None:
    memory = _after([demand(2.0 + 0.01 * step) for step in range(1500)])
    seen = outlook(memory, 180.0)
    assert seen.forecast_per_s > memory.middle.value


def test_bursts_widen_the_spread_but_not_beyond_what_was_seen() -> None:
    loads = ([demand(0.4)] * 50 + [demand(10.0)] * 10) * 20
    seen = outlook(_after([*loads, *[demand(0.4)] * 30]), 180.0)
    assert sum(probability for ratio, probability in seen.ratios if ratio >= 4.0) > 0.05
    assert seen.ceiling_per_s < 1.15 * 10.0


def test_no_time_no_lesson() -> None:
    memory = DemandMemory()
    assert learn(memory, demand(5.0), 0.0, 0.0, 60.0) is memory
    seen = outlook(memory, 60.0)
    assert (seen.prompt_tokens, seen.output_tokens) == (1.0, 100.0)
    assert sum(probability for _, probability in seen.ratios) == pytest.approx(1.0)
    assert len(seen.ratios) == len(RATIOS)


def test_arrivals_without_lengths_are_still_counted() -> None:
    bare = Demand(interval_s=5.0, num_arrived=10, prompt_tokens=1000)
    assert outlook(_after([bare] * 10), 60.0).forecast_per_s == pytest.approx(2.0)


def test_shares_of_prompts_by_length() -> None:
    shares = [0.0] * NUM_PROMPT_BUCKETS
    shares[prompt_bucket(300)] = 0.5
    shares[prompt_bucket(3000)] = 0.5
    assert share_up_to(shares, 1000) == pytest.approx(0.5)
    assert share_up_to(shares, 100_000) == pytest.approx(1.0)
    assert share_up_to(shares, 10) == 0.0
    assert 256 <= mean_up_to(shares, 1000) <= 512
    assert mean_up_to(shares, 10) == 1.0
