"""What is learned of demand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.autoscaler.demand import DemandMemory, Outlook, Service, ceiling_per_s, learn, outlook
from serving.autoscaler.prices import chosen_foresight
from serving.autoscaler.prompt_lengths import mean_up_to, share_up_to
from serving.autoscaler.score import PoolOffer
from serving.autoscaler.shadow_fleets import RATIOS, Foresight
from serving.autoscaler.types import NUM_PROMPT_BUCKETS, Demand, prompt_bucket
from tests.autoscaler.world import demand

SERVICE = Service(prompt_share=0.8, slack_s=5.0)


def _after(loads: list[Demand], lead_s: float = 180.0) -> DemandMemory:
    memory, now_s = DemandMemory(), 0.0
    for load in loads:
        now_s += load.interval_s
        memory = learn(memory, load, load.interval_s, now_s, lead_s, SERVICE)
    return memory


def test_a_steady_load_is_foretold_and_trusted() -> None:
    seen = outlook(_after([demand(6.0)] * 2000), 180.0)
    assert seen.nimble.forecast_per_s == pytest.approx(6.0, rel=0.01)
    assert seen.steady.forecast_per_s == pytest.approx(6.0, rel=0.01)
    assert seen.prompt_tokens == pytest.approx(1000.0, rel=0.01)
    assert seen.output_tokens == pytest.approx(200.0, rel=0.01)
    assert dict(seen.ratios)[1.0] > 0.7


def test_a_rising_load_is_foretold_above_its_present_mean() -> None:
    memory = _after([demand(2.0 + 0.01 * step) for step in range(1500)])
    seen = outlook(memory, 180.0)
    assert seen.nimble.forecast_per_s > memory.middle.value


def test_bursts_widen_the_spread_but_not_beyond_what_was_seen() -> None:
    loads = ([demand(0.4)] * 50 + [demand(10.0)] * 10) * 20
    seen = outlook(_after([*loads, *[demand(0.4)] * 30]), 180.0)
    assert sum(probability for ratio, probability in seen.ratios if ratio >= 4.0) > 0.05
    assert ceiling_per_s(seen, 0.4) < 1.15 * 10.0


def test_a_load_that_has_never_been_is_believed_at_once() -> None:
    memory = _after([*[demand(2.0)] * 2000, *[demand(24.0)] * 12])
    assert outlook(memory, 180.0).nimble.forecast_per_s == memory.fast.value > 20.0


def test_a_burst_like_those_before_it_is_no_new_load() -> None:
    loads = ([demand(2.0)] * 60 + [demand(24.0)] * 12) * 20
    memory = _after(loads)
    assert outlook(memory, 180.0).nimble.forecast_per_s < 0.8 * memory.fast.value


def test_a_minute_of_short_prompts_is_a_light_minute() -> None:
    steady = [demand(6.0)] * 400
    light = outlook(_after([*steady, *[demand(6.0, prompt_tokens=500)] * 60]), 180.0)
    assert light.present_per_s == pytest.approx(6.0 * (0.2 + 0.8 * 0.55), rel=0.1)


def _loss(view: Foresight, ratio: float) -> float:
    return view.share_lost(ratio * 100.0, 100.0)


def test_a_steady_load_is_lost_only_by_a_fleet_that_is_too_small() -> None:
    nimble = outlook(_after([demand(6.0)] * 2000), 180.0).nimble
    assert _loss(nimble, 0.0) == 1.0
    assert _loss(nimble, 0.5) == pytest.approx(0.5, abs=0.03)
    assert _loss(nimble, 1.2) < 0.01
    assert _loss(nimble, 100.0) == 0.0


def _cheaper(seen: Outlook) -> str:
    nimble_usd, steady_usd = (view.usd_per_request(0.001, 0.02, 180.0) for view in (seen.nimble, seen.steady))
    return "nimble" if nimble_usd < steady_usd else "steady"


def test_bursts_shorter_than_a_cold_start_are_better_met_by_the_steady_view() -> None:
    assert _cheaper(outlook(_after(([demand(0.2)] * 40 + [demand(10.0)] * 20) * 20), 180.0)) == "steady"


@pytest.mark.parametrize(("seen_s", "view"), [(1_700.0, "nimble"), (1_900.0, "steady")])
def test_the_mean_of_an_hour_decides_only_when_half_of_one_was_seen(seen_s: float, view: str) -> None:
    seen = outlook(_after(([demand(0.2)] * 40 + [demand(10.0)] * 20) * 20), 180.0)
    offer = PoolOffer(
        usd_per_s=0.001, min_replicas=0, max_replicas=9, capacity_per_s=1.0, slack_s=5.0, share=1.0, prefill_s=0.1,
        current=1, start_usd_per_s=0.0, stop_usd_per_s=0.0, spoilt_share=0.0, is_fallback=False,
    )  # fmt: skip
    assert chosen_foresight((offer,), seen, 0.02, 180.0, seen_s) is getattr(seen, view)


def test_a_load_that_rises_and_falls_in_hours_is_better_met_by_the_nimble_view() -> None:
    hours = [demand(rate) for rate in (1.0, 4.0, 8.0, 12.0, 8.0, 4.0) for _ in range(720)]
    assert _cheaper(outlook(_after(hours * 2), 180.0)) == "nimble"


@given(rates=st.lists(st.floats(0.0, 30.0), min_size=60, max_size=150))
def test_a_bigger_fleet_never_loses_more(rates: list[float]) -> None:
    seen = outlook(_after([demand(rate, interval_s=15.0) for rate in rates]), 60.0)
    for view in (seen.nimble, seen.steady):
        losses = [_loss(view, ratio) for ratio in (0.0, *RATIOS, 64.0)]
        assert all(0.0 <= more <= less + 1e-12 for less, more in pairwise(losses))


def test_no_time_no_lesson() -> None:
    memory = DemandMemory()
    assert learn(memory, demand(5.0), 0.0, 0.0, 60.0, SERVICE) is memory
    seen = outlook(memory, 60.0)
    assert (seen.prompt_tokens, seen.output_tokens) == (1.0, 100.0)
    assert sum(probability for _, probability in seen.ratios) == pytest.approx(1.0)
    assert len(seen.ratios) == len(RATIOS)


def test_arrivals_without_lengths_are_still_counted() -> None:
    bare = Demand(interval_s=5.0, num_arrived=10, prompt_tokens=1000)
    assert outlook(_after([bare] * 10), 60.0).nimble.forecast_per_s == pytest.approx(2.0)


def test_shares_of_prompts_by_length() -> None:
    shares = [0.0] * NUM_PROMPT_BUCKETS
    shares[prompt_bucket(300)] = 0.5
    shares[prompt_bucket(3000)] = 0.5
    assert share_up_to(shares, 1000) == pytest.approx(0.5)
    assert share_up_to(shares, 100_000) == pytest.approx(1.0)
    assert share_up_to(shares, 10) == 0.0
    assert 256 <= mean_up_to(shares, 1000) <= 512
    assert mean_up_to(shares, 10) == 1.0
