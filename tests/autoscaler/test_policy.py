"""The autoscaler's decision: what it must do, in a world that carries its plans out."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from serving.autoscaler.documents import from_document, to_document
from serving.autoscaler.memory import Memory
from serving.autoscaler.policy import decide
from serving.autoscaler.types import Binding, Demand, PoolSpec, PoolState, Work
from tests.autoscaler.world import CPU, CPU_MODEL, GPU, GPU_MODEL, PRICES, SPEC, World, demand

IDLE = demand(0.0)
TURNED_AWAY = replace(IDLE, num_turned_away=1, turned_away_prompt_tokens=300)
TRICKLE = demand(0.15, interval_s=20.0, prompt_tokens=300, output_tokens=60)


def test_a_load_gets_what_it_needs_and_no_more(world: World) -> None:
    world.run(demand(10.0), 1200)
    assert world.ready["gpu"] == 2  # one carries about 6.5 of these per second
    assert world.step(demand(10.0)).targets == {"gpu": 2, "cpu": 0}


def test_no_load_costs_nothing(world: World) -> None:
    world.run(demand(6.0), 600)
    world.run(IDLE, 3600)
    assert world.ready == {"gpu": 0, "cpu": 0}


def test_a_replica_that_starts_counts_as_if_it_were_there(world: World) -> None:
    targets = [plan.targets["gpu"] for plan in world.run(demand(10.0), 170)]
    assert max(targets) <= 3
    assert len(world.starting["gpu"]) == targets[-1]


def test_a_cheap_fallback_pool_bridges_the_cold_start_of_the_primary_one(world: World) -> None:
    plans = world.run(demand(0.6, interval_s=10.0), 170)
    assert any(plan.targets["cpu"] > 0 for plan in plans)
    world.run(demand(0.6, interval_s=10.0), 900)
    assert world.ready == {"gpu": 1, "cpu": 0}


def test_the_primary_pool_goes_to_zero_when_a_fallback_pool_alone_is_cheaper(world: World) -> None:
    world.prices["cpu"] = 0.10
    world.run(demand(2.0), 600)
    assert world.ready["gpu"] >= 1
    world.run(TRICKLE, 4 * 3600)
    assert world.ready["gpu"] == 0
    assert world.ready["cpu"] >= 1


def test_the_primary_pool_does_not_go_before_the_fallback_pool_is_ready(world: World) -> None:
    world.prices["cpu"] = 0.10
    world.run(demand(2.0), 600)
    world.lost.add("cpu")
    plans = world.run(TRICKLE, 1800)
    assert any(plan.targets == {"gpu": 1, "cpu": 1} for plan in plans)
    gone = next((plan for plan in plans if not plan.targets["gpu"]), None)
    assert gone is None or gone.reasons[1].backed_off_until_s is not None  # nothing to wait for any more


def test_a_restart_takes_no_step_down_until_it_has_seen_enough(world: World) -> None:
    world.run(demand(20.0), 900)
    before = world.ready["gpu"]
    world.memory = Memory()
    plans = world.run(IDLE, world.spec.tuning.relearn_s - 5.0)
    assert [plan.targets["gpu"] for plan in plans] == [before] * len(plans)
    assert plans[-1].binding is Binding.RELEARNING


def test_less_must_be_enough_for_a_while_before_anything_is_stopped(world: World) -> None:
    world.run(demand(10.0), 900)
    plans = world.run(demand(3.0), 60)
    assert all(plan.targets["gpu"] == 2 for plan in plans)
    assert plans[-1].binding is Binding.HOLD
    world.run(demand(3.0), 900)
    assert world.ready["gpu"] == 1


def test_a_load_that_swings_faster_than_a_cold_start_moves_less_than_that(world: World) -> None:
    world.run(demand(10.0), 900)
    plans = []
    for _ in range(40):
        plans += world.run(demand(3.0), 40) + world.run(demand(10.0), 40)
    changes = sum(one.targets != two.targets for one, two in pairwise(plans))
    assert changes <= 53 * 60 / (2 * GPU.cold_start_s) + 2  # in 53 minutes and 80 swings


def test_a_smaller_fleet_is_not_tried_at_a_load_it_could_not_carry(world: World) -> None:
    """The forecast may fall before the load has: the present mean counts too."""
    world.run(demand(10.0), 900)
    plan = world.step(demand(3.0))
    assert plan.targets["gpu"] == 2


def test_a_replica_that_never_comes_is_given_up_with_growing_pauses(world: World) -> None:
    world.lost.add("gpu")
    plans = world.run(demand(6.0), 4000)
    tried = [index for index, (one, two) in enumerate(pairwise(plans))
             if two.targets["gpu"] > one.targets["gpu"]]  # fmt: skip
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses == sorted(pauses)
    assert len(pauses) >= 2
    capped = [plan for plan in plans if plan.targets["gpu"] == 0]
    assert any(plan.binding is Binding.CAPACITY for plan in capped)
    assert any(plan.targets["cpu"] == 3 for plan in capped)
    assert capped[-1].reasons[0].backed_off_until_s is not None


def test_a_replica_that_comes_ends_the_back_off(world: World) -> None:
    world.lost.add("gpu")
    world.run(demand(6.0), 1500)
    world.lost.clear()
    world.run(demand(6.0), 1800)
    assert world.ready["gpu"] >= 1
    assert world.memory.pools["gpu"].num_failures == 0


def test_one_whose_beginning_nobody_saw_ends_it_too(world: World) -> None:
    world.lost.add("gpu")
    while world.memory.pools.get("gpu") is None or world.memory.pools["gpu"].backed_off_until_s is None:
        world.step(demand(10.0))
    fleet = {"gpu": PoolState(1, num_came_up=1), "cpu": PoolState(0)}
    _, memory = decide(world.now_s, fleet, demand(10.0), PRICES, SPEC, world.memory)
    assert memory.pools["gpu"].backed_off_until_s is None
    assert memory.pools["gpu"].num_failures == 0


def test_a_replica_lost_while_backed_off_lowers_what_is_counted_on(world: World) -> None:
    world.run(demand(10.0), 900)
    world.lost.add("gpu")
    while world.memory.pools["gpu"].backed_off_until_s is None:
        world.step(demand(30.0))
    world.ready["gpu"] = 1
    assert world.step(demand(30.0)).targets["gpu"] == 1


def test_a_pool_that_cannot_be_placed_is_not_counted_on(world: World) -> None:
    world.unplaceable.add("gpu")
    plans = world.run(demand(1.0), 600)
    assert {plan.targets["gpu"] for plan in plans} == {0}
    assert plans[-1].targets["cpu"] >= 1


def test_spending_is_bounded_per_hour(world_of: Callable[..., World]) -> None:
    world = world_of(max_usd_per_hour=8.0)
    plans = world.run(demand(40.0), 900)
    assert all(plan.usd_per_hour <= 8.0 for plan in plans)
    assert plans[-1].targets["gpu"] == 2
    assert plans[-1].binding is Binding.MAX_USD_PER_HOUR


def test_spending_is_bounded_per_token_but_one_replica_is_always_allowed(world_of: Callable[..., World]) -> None:
    world = world_of(target_usd_per_million_tokens=0.05, max_usd_per_hour=100.0)
    plans = world.run(demand(10.0), 900)
    assert plans[-1].binding is Binding.TARGET_USD_PER_MILLION_TOKENS
    assert sum(plans[-1].targets.values()) == 1
    world = world_of(target_usd_per_million_tokens=50.0, max_usd_per_hour=8.0)
    assert world.run(demand(40.0), 900)[-1].binding is Binding.MAX_USD_PER_HOUR


def test_a_price_per_token_leaves_room_for_the_cheapest_primary_replica_beside_all_minimums(
    world_of: Callable[..., World],
) -> None:
    world = world_of(pools=(GPU, replace(CPU, min_replicas=1)), target_usd_per_million_tokens=0.001)
    world.run(IDLE, 600)
    assert world.run(demand(6.0), 600)[-1].targets["gpu"] == 1


def test_a_pool_that_cannot_run_is_no_measure_of_what_may_be_spent(world_of: Callable[..., World]) -> None:
    cheap = replace(GPU, name="a10")
    world = world_of(pools=(cheap, GPU), target_usd_per_million_tokens=0.001)
    world.prices["a10"] = 1.0
    world.unplaceable.add("a10")
    assert world.run(demand(6.0), 600)[-1].targets == {"a10": 0, "gpu": 1}


def test_a_price_per_token_holds_back_no_burst_that_pays_for_itself(world_of: Callable[..., World]) -> None:
    free, bounded = world_of(pools=(GPU,)), world_of(pools=(GPU,), target_usd_per_million_tokens=1.0)
    for world in (free, bounded):
        world.run(IDLE, 3600)
    for _ in range(60):
        assert bounded.step(demand(20.0)).targets == free.step(demand(20.0)).targets
    assert free.ready["gpu"] >= 2


def test_a_minimum_is_kept_even_against_the_spending_bound(world_of: Callable[..., World]) -> None:
    world = world_of(pools=(replace(GPU, min_replicas=2), CPU), max_usd_per_hour=1.0)
    plan = world.run(IDLE, 600)[-1]
    assert plan.targets["gpu"] == 2
    assert plan.binding is Binding.REPLICAS_MIN


def test_a_pool_at_its_maximum_says_so(world_of: Callable[..., World]) -> None:
    world = world_of(pools=(replace(GPU, max_replicas=2), replace(CPU, max_replicas=0)))
    plan = world.run(demand(40.0), 900)[-1]
    assert plan.targets["gpu"] == 2
    assert plan.binding is Binding.REPLICAS_MAX


def test_whoever_waits_long_is_served_though_it_pays_for_nobody_else(world: World) -> None:
    world.run(IDLE, 600)
    late = replace(IDLE, num_late=1, late_prompt_tokens=7000, oldest_late_s=5.0)
    assert not any(world.step(late).targets.values())
    plan = world.step(replace(late, oldest_late_s=11.0))
    assert plan.targets == {"gpu": 1, "cpu": 0}
    assert plan.binding is Binding.PATIENCE


def test_whoever_was_turned_away_gets_a_replica_started_at_once(world: World) -> None:
    world.run(IDLE, 600)
    plan = world.step(TURNED_AWAY)
    assert plan.targets == {"gpu": 1, "cpu": 0}
    assert plan.binding is Binding.PATIENCE


def test_what_a_fallback_replica_may_not_serve_gets_a_primary_one_started(world_of: Callable[..., World]) -> None:
    world = world_of(pools=(GPU, replace(CPU, min_replicas=1)))
    world.run(IDLE, 600)
    assert world.step(IDLE).targets == {"gpu": 0, "cpu": 1}
    assert world.step(TURNED_AWAY).targets == {"gpu": 1, "cpu": 1}


@pytest.mark.parametrize(("prompt_tokens", "number"), [(300, 1), (9000, 0)])
def test_where_a_primary_replica_is_too_dear_a_fallback_one_serves_what_it_may(
    world_of: Callable[..., World], prompt_tokens: int, number: int
) -> None:
    world = world_of(max_usd_per_hour=3.0)
    world.run(IDLE, 600)
    plan = world.step(replace(TURNED_AWAY, turned_away_prompt_tokens=prompt_tokens))
    assert plan.targets == {"gpu": 0, "cpu": number}


def test_the_only_replica_is_there_when_they_come_back_for_whom_it_was_started(world: World) -> None:
    world.run(IDLE, 600)
    world.step(TURNED_AWAY)
    world.run(IDLE, 220)
    assert world.ready["gpu"] == 1
    world.run(IDLE, 600)
    assert world.ready["gpu"] == 0


@pytest.mark.parametrize(("pool", "takes_s"), [(CPU, 70.0), (CPU, 400.0), (GPU, 420.0), (GPU, 1500.0)])
def test_a_replica_that_takes_far_longer_than_expected_comes_up_all_the_same(pool: PoolSpec, takes_s: float) -> None:
    world = World(replace(SPEC, pools=(replace(pool, min_replicas=1, fallback=None),)))
    world.takes_s[pool.name] = takes_s
    world.run(IDLE, 3 * 3600)
    assert world.ready[pool.name] == 1


def test_one_that_has_become_slow_comes_up_in_the_end(world_of: Callable[..., World]) -> None:
    world = world_of(pools=(GPU, CPU))
    world.run(demand(6.0), 900)
    assert world.ready["gpu"] == 1
    world.takes_s["gpu"], world.ready["gpu"] = 900.0, 0
    world.run(demand(6.0), 2 * 3600)
    assert world.ready["gpu"] >= 1


def test_what_the_spending_bound_leaves_is_spent_on_a_cheaper_pool(world_of: Callable[..., World]) -> None:
    world = world_of(max_usd_per_hour=3.0)
    plan = world.run(demand(2.0, prompt_tokens=300, output_tokens=60), 900)[-1]
    assert plan.targets == {"gpu": 0, "cpu": 2}
    assert plan.usd_per_hour <= 3.0


def test_nobody_is_served_where_no_pool_may_run(world_of: Callable[..., World]) -> None:
    world = world_of(pools=(replace(GPU, max_replicas=0), replace(CPU, max_replicas=0)))
    world.run(demand(1.0), 60)
    late = replace(IDLE, num_late=1, oldest_late_s=1000.0)
    assert world.step(late).targets == {"gpu": 0, "cpu": 0}


def test_misses_make_a_miss_dearer_and_their_absence_cheaper(world: World) -> None:
    good = world.run(demand(5.0), 1800)[-1]
    bad = World()
    missing = replace(demand(5.0), num_met=20, num_missed=5)
    spoilt = bad.run(missing, 1800)[-1]
    assert good.budget_spent < 1.0 < spoilt.budget_spent
    assert good.miss_usd < spoilt.miss_usd


def test_slower_replicas_than_calibrated_are_noticed(world: World) -> None:
    slow = Work(num_steps=1000, prefill_tokens=400_000, decode_tokens=50_000, kv_token_steps=1e7, busy_s=110.0)
    fleet = {"gpu": PoolState(1, work=slow), "cpu": PoolState(0)}
    memory = Memory()
    for index in range(20):
        plan, memory = decide(1000.0 + 5 * index, fleet, demand(3.0), PRICES, SPEC, memory)
    modelled_s = 1000 * 0.011 + 50_000 * 5e-5 + 1e7 * 8e-8 + 400_000 * 1e-4
    assert memory.pools["gpu"].speed.value == pytest.approx(modelled_s / 110.0)
    fast, _ = decide(1100.0, {"gpu": PoolState(1), "cpu": PoolState(0)}, demand(3.0), PRICES, SPEC, Memory())
    assert plan.reasons[0].capacity_per_s < fast.reasons[0].capacity_per_s


def test_cold_starts_are_learned(world: World) -> None:
    fleet = {"gpu": PoolState(1, cold_starts_s=(30.0,)), "cpu": PoolState(0)}
    memory = Memory()
    for index in range(30):
        plan, memory = decide(1000.0 + 5 * index, fleet, demand(3.0), PRICES, SPEC, memory)
    assert plan.reasons[0].cold_start_s == pytest.approx(30.0 * 1.128)


def test_a_long_cold_start_is_seen_sooner_by_a_pool_of_short_ones() -> None:
    """Any number of pools, in any order, none of them called gpu or cpu; also a spec of fallback pools only."""
    pools = tuple(
        PoolSpec(f"p{index}", 0, 8, GPU_MODEL if index % 2 else CPU_MODEL, 60.0 + index,
                 CPU.fallback if index % 3 == 2 else None)
        for index in range(8)
    )  # fmt: skip
    world = World(replace(SPEC, pools=pools))
    world.prices = {pool.name: 1.0 + index for index, pool in enumerate(pools)}
    plan = world.run(demand(20.0), 900)[-1]
    assert set(plan.targets) == {pool.name for pool in pools}
    assert plan.expected_miss < 0.05
    only = World(replace(SPEC, pools=(CPU,)))
    assert only.run(demand(0.2, interval_s=10.0), 900)[-1].targets["cpu"] >= 1


def test_no_pool_at_all_is_no_error() -> None:
    plan, _ = decide(0.0, {}, demand(1.0), {}, replace(SPEC, pools=()), Memory())
    assert plan.targets == {}


def test_an_empty_first_decision_says_nothing() -> None:
    plan, memory = decide(math.nan, {}, Demand(interval_s=0.0), {}, SPEC, Memory())
    assert plan.targets == {"gpu": 0, "cpu": 0}
    assert plan.usd_per_million_tokens is None
    assert memory.last_s == 0.0


def test_a_decision_log_replays_to_the_same_plans(world: World) -> None:
    other = World()
    for load in (demand(4.0), demand(12.0), IDLE, demand(1.0)):
        world.run(load, 400)
        for _ in range(80):
            other.memory = from_document(Memory, json.loads(json.dumps(to_document(other.memory))))
            plan = other.step(load)
        assert other.memory == world.memory
        assert plan.targets == world.step(load).targets == other.step(load).targets


@pytest.mark.parametrize("document", [{}, {"last_s": 1}, {**to_document(Memory()), "pools": {"a": {}}}, "x"])
def test_a_memory_of_another_version_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="not a Memory"):
        from_document(Memory, document)


def test_a_fallback_pool_whose_answers_bound_it_is_not_trusted_with_more_than_it_carries() -> None:
    """Short prompts cost it next to nothing, and it runs two answers at once: the primary pool must start."""
    narrow = replace(CPU, model=replace(GPU_MODEL, max_num_seqs=2), min_replicas=1, max_replicas=1)
    world = World(replace(SPEC, pools=(GPU, narrow)))
    for _ in range(60):
        plan = world.step(demand(20.0, prompt_tokens=20, output_tokens=200))
    assert plan.targets["gpu"] >= 1
