"""Figures from gateways to the autoscaler, as flat numbers."""

from dataclasses import fields

import pytest

from serving.protocol.stats import DemandStats, PoolStats

POOL = PoolStats(*(float(number) for number in range(1, 13)))
DEMAND = DemandStats(*(float(number) for number in range(1, 11)))


def test_what_was_told_of_a_pool_is_read() -> None:
    assert PoolStats.read(POOL.as_stats("demo", "gpu"), "demo", "gpu") == POOL


def test_what_was_told_of_demand_is_read() -> None:
    stats = DEMAND.as_stats("demo", [7, 0, 3])
    assert DemandStats.read(stats, "demo") == DEMAND
    assert DemandStats.read_prompts(stats, "demo", 3) == (7.0, 0.0, 3.0)
    assert all(type(value) is float for value in stats.values())


def test_what_was_not_told_is_zero() -> None:
    assert PoolStats.read({}, "demo", "gpu") == PoolStats()
    assert DemandStats.read({}, "demo") == DemandStats()
    assert DemandStats.read_prompts({}, "demo", 2) == (0.0, 0.0)


@pytest.mark.parametrize(("other_model", "other_pool"), [("demo", "cpu"), ("other", "gpu"), ("demo/gpu", "gpu")])
def test_pools_and_models_do_not_mix(other_model: str, other_pool: str) -> None:
    stats = POOL.as_stats("demo", "gpu") | DEMAND.as_stats("demo", [1, 2])
    assert PoolStats.read(stats, other_model, other_pool) == PoolStats()
    if other_model != "demo":
        assert DemandStats.read(stats, other_model) == DemandStats()


def test_a_model_named_like_a_pool_of_another_shares_no_figure_with_it() -> None:
    """Names of models may hold slashes: `a/b` is a model, or pool `b` of model `a`."""
    assert not POOL.as_stats("a", "b").keys() & DEMAND.as_stats("a/b", [0] * 20).keys()


def test_open_streams_are_told_by_replica_beside_the_rest() -> None:
    stats = DemandStats.as_streams({"r0": 3, "r1": 0}) | DEMAND.as_stats("demo", [1])
    assert DemandStats.read_streams(stats) == {"r0": 3.0, "r1": 0.0}
    assert DemandStats.read(stats, "demo") == DEMAND


def test_only_a_gateway_tells_of_demand() -> None:
    assert DemandStats.are_in(DEMAND.as_stats("demo", []))
    assert not DemandStats.are_in({})
    assert not DemandStats.are_in(POOL.as_stats("demo", "gpu"))


def test_counters_come_first_in_the_order_of_the_work_that_an_engine_reports() -> None:
    """A gateway fills them in by position."""
    names = [field.name for field in fields(PoolStats)]
    assert names[:5] == ["num_steps", "prefill_tokens", "decode_tokens", "kv_token_steps", "busy_s"]
    assert names[5:9] == ["c0_s", "c1_s_per_sequence", "ckv_s_per_token", "cp_s_per_token"]
