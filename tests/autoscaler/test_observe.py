"""From counters and lists of replicas to what the autoscaler is told."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.autoscaler.observe import DemandObserver, GatewayReading, PoolObserver, PoolReading
from serving.autoscaler.types import NUM_PROMPT_BUCKETS, Work
from serving.protocol.stats import DemandStats, PoolStats
from tests.autoscaler.world import GPU_MODEL

SPEED = {"c0_s": 0.02, "c1_s_per_sequence": 1e-4, "ckv_s_per_token": 1e-7, "cp_s_per_token": 5e-5}
BOUNDS = {"max_num_batched_tokens": 4096.0, "max_num_seqs": 128.0, "kv_capacity_tokens": 300_000.0}


def pool(*running: str, target: int | None = None, **gateways: PoolStats) -> PoolReading:
    return PoolReading(frozenset(running), len(running) if target is None else target, gateways)


# --------------------------------------------------------------------------------------------------------------- starts


def test_a_replica_that_is_asked_for_ages_until_it_is_up_and_tells_how_long_it_took() -> None:
    observer = PoolObserver()
    assert observer.look(pool("a"), 0.0).starting_age_s == ()
    assert observer.look(pool("a", target=2), 10.0).starting_age_s == (0.0,)
    assert observer.look(pool("a", target=2), 40.0).starting_age_s == (30.0,)
    state = observer.look(pool("a", "b"), 55.0)
    assert (state.num_ready, state.starting_age_s, state.cold_starts_s) == (2, (), (45.0,))
    assert observer.look(pool("a", "b"), 60.0).cold_starts_s == ()


def test_of_several_the_first_asked_for_is_the_first_up() -> None:
    observer = PoolObserver()
    observer.look(pool(), 0.0)
    observer.look(pool(target=1), 1.0)
    assert observer.look(pool(target=3), 20.0).starting_age_s == (19.0, 0.0, 0.0)
    state = observer.look(pool("a", "b", target=3), 31.0)
    assert (state.cold_starts_s, state.starting_age_s) == ((30.0, 11.0), (11.0,))


def test_a_start_that_was_not_seen_from_its_beginning_ages_but_tells_nothing_of_the_next() -> None:
    """It started with the server, or before the controller did."""
    observer = PoolObserver()
    observer.look(pool(target=1), 0.0)
    assert observer.look(pool(target=2), 20.0).starting_age_s == (20.0, 0.0)
    state = observer.look(pool("a", target=2), 30.0)
    assert (state.num_came_up, state.cold_starts_s, state.starting_age_s) == (1, (), (10.0,))
    state = observer.look(pool("a", "b", target=2), 32.0)
    assert (state.num_came_up, state.cold_starts_s) == (1, (12.0,))


def test_of_those_that_are_given_up_the_youngest_go_first() -> None:
    observer = PoolObserver()
    observer.look(pool(target=1), 0.0)
    observer.look(pool(target=3), 20.0)
    assert observer.look(pool(target=1), 30.0).starting_age_s == (30.0,)
    assert observer.look(pool(target=0), 31.0).starting_age_s == ()
    assert observer.look(pool(target=1), 40.0).starting_age_s == (0.0,)


def test_a_replica_that_died_is_replaced_by_one_that_starts() -> None:
    observer = PoolObserver()
    observer.look(pool("a", "b"), 0.0)
    assert observer.look(pool("a", target=2), 10.0).starting_age_s == (0.0,)
    assert observer.look(pool("a", "c", target=2), 25.0).cold_starts_s == (15.0,)


def test_what_ran_before_the_first_look_tells_of_no_start() -> None:
    """The controller has restarted: nobody knows how long those took."""
    state = PoolObserver().look(pool("a", "b", target=3), 100.0)
    assert (state.num_ready, state.cold_starts_s, state.starting_age_s) == (2, (), (0.0,))


def test_a_replica_that_runs_beyond_the_target_is_no_start() -> None:
    observer = PoolObserver()
    assert observer.look(pool("a", "b", target=1), 0.0).starting_age_s == ()


def test_a_pool_without_devices_says_so() -> None:
    reading = replace(pool(), is_placeable=False)
    assert not PoolObserver().look(reading, 0.0).is_placeable


# ---------------------------------------------------------------------------------------------------- work and speed


def work(number: float) -> PoolStats:
    return PoolStats(number, 10 * number, 2 * number, 100 * number, 0.5 * number)


def test_work_is_what_was_done_since_the_last_look() -> None:
    observer = PoolObserver()
    assert observer.look(pool("a", g=work(1000)), 0.0).work == Work()
    assert observer.look(pool("a", g=work(1004)), 2.0).work == Work(4, 40, 8, 400.0, 2.0)


def test_gateways_that_hear_of_the_same_engines_are_not_added_up() -> None:
    observer = PoolObserver()
    observer.look(pool("a", g=work(1000), h=work(10)), 0.0)
    assert observer.look(pool("a", g=work(1004), h=work(13)), 2.0).work.num_steps == 4


def test_what_one_gateway_has_told_is_not_told_again_by_another_that_was_silent() -> None:
    observer = PoolObserver()
    observer.look(pool("a", g=work(1000), h=work(500)), 0.0)
    done = [observer.look(pool("a", g=work(1000 + 4 * n), h=work(500)), 2.0 * n).work.num_steps for n in (1, 2, 3)]
    done.append(observer.look(pool("a", g=work(1013), h=work(513)), 8.0).work.num_steps)
    assert done == [4, 4, 4, 1]


def test_the_other_gateways_count_on_from_what_one_knew_that_is_gone() -> None:
    observer = PoolObserver()
    observer.look(pool("a", g=work(1000), h=work(500)), 0.0)
    observer.look(pool("a", g=work(1100), h=work(510)), 2.0)
    assert observer.look(pool("a", h=work(520)), 4.0).work.num_steps == 0
    assert observer.look(pool("a", h=work(525)), 6.0).work.num_steps == 5


def test_a_gateway_that_is_new_or_gone_changes_nothing() -> None:
    observer = PoolObserver()
    observer.look(pool("a", g=work(1000)), 0.0)
    assert observer.look(pool("a", g=work(1004), new=work(9999)), 2.0).work.num_steps == 4
    assert observer.look(pool("a", new=work(9999)), 4.0).work == Work()
    assert observer.look(pool("a"), 6.0).work == Work()


def test_the_speed_is_the_last_that_was_heard_also_of_a_pool_that_is_at_zero_now() -> None:
    """Else a pool that was measured would look different the moment it has no replica, and come back at once."""
    observer = PoolObserver()
    observer.look(pool("a"), 0.0)
    assert observer.model(GPU_MODEL) == GPU_MODEL
    observer.look(pool("a", g=PoolStats(**SPEED, **BOUNDS)), 2.0)
    measured = observer.model(GPU_MODEL)
    assert (measured.cp_s_per_token, measured.max_num_seqs) == (5e-5, 128)
    observer.look(pool(g=PoolStats()), 4.0)
    observer.look(pool(), 6.0)
    assert observer.model(GPU_MODEL) == measured


@pytest.mark.parametrize("missing", ["cp_s_per_token", "max_num_batched_tokens", "max_num_seqs"])
def test_a_speed_that_is_not_whole_is_none(missing: str) -> None:
    observer = PoolObserver()
    observer.look(pool("a", g=PoolStats(**SPEED | BOUNDS | {missing: 0.0})), 0.0)
    assert observer.model(GPU_MODEL) == GPU_MODEL


# --------------------------------------------------------------------------------------------------------------- demand


def gateway(num_arrived: float = 0.0, prompt: int = 3, **stats: float) -> GatewayReading:
    prompts = [0.0] * NUM_PROMPT_BUCKETS
    prompts[prompt] = num_arrived
    return GatewayReading(DemandStats(num_arrived=num_arrived, **stats), tuple(prompts))


def test_demand_is_what_came_in_through_all_gateways_since_the_last_look() -> None:
    observer = DemandObserver()
    first = observer.look({"g": gateway(100, num_met=90), "h": gateway(50, prompt=5)}, 10.0)
    assert (first.interval_s, first.num_arrived) == (0.0, 0)
    second = observer.look({"g": gateway(104, num_met=93), "h": gateway(51, prompt=5)}, 12.0)
    assert (second.interval_s, second.num_arrived, second.num_met) == (2.0, 5, 3)
    assert (second.prompts[3], second.prompts[5], sum(second.prompts)) == (4, 1, 5)


def test_what_a_gateway_counted_before_it_was_known_is_not_demand() -> None:
    observer = DemandObserver()
    observer.look({"g": gateway(100)}, 10.0)
    assert observer.look({"g": gateway(101), "new": gateway(500)}, 12.0).num_arrived == 1
    assert observer.look({"new": gateway(503)}, 14.0).num_arrived == 3


def test_what_waits_now_counts_at_the_first_look_too() -> None:
    late = {"num_queued": 3, "num_late": 2, "late_prompt_tokens": 700}
    seen = DemandObserver().look(
        {"g": gateway(**late, oldest_late_s=8.0), "h": gateway(**late, oldest_late_s=30.0)}, 0.0
    )
    assert (seen.num_queued, seen.num_late, seen.late_prompt_tokens, seen.oldest_late_s) == (6, 4, 1400, 30.0)


def test_no_gateway_is_no_demand() -> None:
    observer = DemandObserver()
    observer.look({"g": gateway(100)}, 10.0)
    seen = observer.look({}, 12.0)
    assert (seen.interval_s, seen.num_arrived, seen.num_late, seen.oldest_late_s) == (2.0, 0, 0, 0.0)


_figure = st.one_of(st.floats(), st.integers(-10, 10**9).map(float))


def _stats(kind: type) -> st.SearchStrategy[object]:
    return st.builds(kind, **{field.name: _figure for field in fields(kind)})


@settings(max_examples=40)
@given(
    readings=st.lists(st.tuples(_stats(DemandStats), _stats(PoolStats), st.lists(_figure, min_size=20, max_size=20))),
    is_same=st.booleans(),
)
def test_no_figure_makes_an_observer_raise_or_answer_nonsense(
    readings: list[tuple[DemandStats, PoolStats, list[float]]], is_same: bool
) -> None:
    demands, pools = DemandObserver(), PoolObserver()
    for number, (demand_stats, pool_stats, prompts) in enumerate(readings):
        name = "g" if is_same else f"g{number}"
        demand = demands.look({name: GatewayReading(demand_stats, tuple(prompts))}, float(number))
        state = pools.look(pool("a", **{name: pool_stats}), float(number))
        model = pools.model(GPU_MODEL)
        figures = [getattr(of, field.name) for of in (demand, state.work, model) for field in fields(of)]
        for figure in [*(figure for figure in figures if not isinstance(figure, tuple)), *demand.prompts]:
            assert math.isfinite(figure)
            assert figure >= 0
