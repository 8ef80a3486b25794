"""What tokens cost, by use and by what was paid for."""

import pytest

from serving.autoscaler.spending import WINDOW_S, Spending
from serving.autoscaler.types import PoolState, Work

PRICES = {"gpu": 3.6}
USD_PER_S = 0.001


def run(spending: Spending, state: PoolState, number: int, every_s: float = 10.0) -> None:
    """So many looks at a fleet that is always the same."""
    start_s = spending._last_s or 0.0
    for index in range(1, number + 1):
        spending.add({"gpu": state}, PRICES, start_s + index * every_s)


def busy(num_ready: int, share: float, tokens: int = 10_000) -> PoolState:
    """Replicas of which one works this share of each 10 s, and makes so many tokens."""
    return PoolState(num_ready, work=Work(100, tokens - 100, 100, 0.0, 10.0 * share))


def test_a_token_costs_its_engines_time_by_use_and_all_that_was_paid_by_allocation() -> None:
    spending = Spending()
    spending.add({"gpu": PoolState(2)}, PRICES, 0.0)
    run(spending, busy(2, share=0.5), 3000)
    cost = spending.costs()["gpu"]
    assert cost.usage_usd_per_million_tokens == pytest.approx(5.0 * USD_PER_S / 10_000 * 1e6)
    assert cost.allocation_usd_per_million_tokens == pytest.approx(20.0 * USD_PER_S / 10_000 * 1e6)
    assert cost.usd_per_hour == pytest.approx(7.2)


def test_replicas_that_start_are_paid_for_too() -> None:
    spending = Spending()
    spending.add({"gpu": PoolState(1, starting_age_s=(3.0, 0.0))}, PRICES, 0.0)
    assert spending.costs()["gpu"].usd_per_hour == pytest.approx(10.8)


def test_without_tokens_there_is_no_price_of_one() -> None:
    spending = Spending()
    assert spending.costs() == {}
    run(spending, PoolState(1), 10)
    cost = spending.costs()["gpu"]
    assert cost.usage_usd_per_million_tokens is None
    assert cost.allocation_usd_per_million_tokens is None


def test_idle_hours_make_tokens_dearer_by_allocation_alone() -> None:
    spending = Spending()
    run(spending, busy(1, share=1.0), 100)
    before = spending.costs()["gpu"]
    run(spending, PoolState(1), 100)
    after = spending.costs()["gpu"]
    assert after.usage_usd_per_million_tokens == pytest.approx(before.usage_usd_per_million_tokens)
    assert after.allocation_usd_per_million_tokens == pytest.approx(
        2.0 * before.allocation_usd_per_million_tokens,
        rel=0.2,  # type: ignore[operator]
    )


def test_what_was_long_ago_is_forgotten() -> None:
    spending = Spending()
    run(spending, busy(1, share=1.0, tokens=1000), 100)
    run(spending, busy(1, share=1.0, tokens=100_000), round(5 * WINDOW_S / 10.0))
    assert spending.costs()["gpu"].usage_usd_per_million_tokens == pytest.approx(0.1, rel=0.05)


def test_a_pool_without_a_price_costs_nothing() -> None:
    spending = Spending()
    spending.add({"free": busy(1, share=1.0)}, {}, 0.0)
    assert spending.costs()["free"].usage_usd_per_million_tokens == 0.0
