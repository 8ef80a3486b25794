"""What no decision may ever do, whatever it is told."""

import json
import math
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.autoscaler.clean import clean_demand, clean_number, clean_price, clean_state
from serving.autoscaler.documents import from_document, to_document
from serving.autoscaler.memory import Memory
from serving.autoscaler.policy import decide
from serving.autoscaler.types import Demand, PoolState, Spec, Work
from tests.autoscaler.world import CPU, GPU, PRICES, SPEC, World, demand

_odd = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, -1e300, 1e300, 0.0])
_number: Any = st.one_of(_odd, st.floats(0.0, 1e6), st.integers(0, 10_000))
_work = st.builds(
    Work, num_steps=_number, prefill_tokens=_number, decode_tokens=_number, kv_token_steps=_number, busy_s=_number
)
_state = st.builds(
    PoolState,
    num_ready=st.one_of(_odd, st.integers(0, 30)),
    starting_age_s=st.lists(_number, max_size=4).map(tuple),
    cold_starts_s=st.lists(_number, max_size=3).map(tuple),
    work=_work,
    is_placeable=st.booleans(),
)
_demand = st.builds(
    Demand,
    interval_s=_number,
    num_arrived=_number,
    prompt_tokens=_number,
    prompts=st.lists(_number, max_size=25).map(tuple),
    num_finished=_number,
    output_tokens=_number,
    num_met=_number,
    num_missed=_number,
    num_queued=_number,
    num_late=_number,
    late_prompt_tokens=_number,
    oldest_late_s=_number,
)
_maybe_usd = st.one_of(st.none(), _number)
_spec = st.builds(
    Spec,
    pools=st.just((GPU, CPU)),
    ttft_slo_s=st.just(5.0),
    tpot_slo_s=st.just(0.15),
    max_usd_per_hour=_maybe_usd,
    target_usd_per_million_tokens=_maybe_usd,
)
_tick = st.tuples(_number, st.dictionaries(st.sampled_from(["gpu", "cpu", "else"]), _state), _demand)


@settings(max_examples=60, deadline=None)
@given(ticks=st.lists(_tick, min_size=1, max_size=8), spec=_spec, usd=_number)
def test_no_figure_makes_it_raise_or_answer_nonsense(ticks: list[Any], spec: Spec, usd: float) -> None:
    memory = Memory()
    for now_s, fleet, told in ticks:
        plan, memory = decide(now_s, fleet, told, {"gpu": usd, "cpu": 1.43}, spec, memory)
        for pool in spec.pools:
            target = plan.targets[pool.name]
            assert isinstance(target, int)
            assert pool.min_replicas <= target <= pool.max_replicas
        assert math.isfinite(plan.usd_per_hour)
        assert math.isfinite(plan.forecast_per_s)
        assert 0.0 <= plan.expected_miss <= 1.0
        document = json.dumps(to_document(memory), allow_nan=False)
        assert from_document(Memory, json.loads(document)) == memory


def test_a_share_stays_one_after_a_rate_that_is_a_mistake() -> None:
    """Small errors of big numbers are big."""
    memory = Memory()
    absurd = replace(demand(1.0), interval_s=60.0, num_arrived=10**300)
    for now_s, told in ((0.0, absurd), (369.0, demand(0.0)), (968.0, demand(0.0)), (1568.0, demand(0.0))):
        plan, memory = decide(now_s, {}, told, PRICES, SPEC, memory)
        assert 0.0 <= plan.expected_miss <= 1.0


@settings(max_examples=25, deadline=None)
@given(rates=st.lists(st.floats(0.0, 40.0), min_size=1, max_size=6), restart=st.integers(0, 5))
def test_a_restart_never_lowers_a_target_at_once(rates: list[float], restart: int) -> None:
    world = World()
    for index, rate_per_s in enumerate(rates):
        plans = world.run(demand(rate_per_s), 120)
        if index == restart:
            there = {name: world.ready[name] + len(world.starting[name]) for name in world.ready}
            world.memory = Memory()
            plan = world.step(demand(rate_per_s))
            assert all(plan.targets[name] >= there[name] for name in there)
        assert all(plan.usd_per_hour >= 0.0 for plan in plans)


@settings(max_examples=25, deadline=None)
@given(rate_per_s=st.floats(0.5, 40.0), more=st.floats(1.2, 3.0))
def test_more_load_never_gets_fewer_primary_replicas(rate_per_s: float, more: float) -> None:
    ready = []
    for factor in (1.0, more):
        world = World()
        world.run(demand(rate_per_s * factor), 900)
        ready.append(world.ready["gpu"])
    assert ready[1] >= ready[0]


def test_the_same_arguments_give_the_same_answer() -> None:
    fleet = {"gpu": PoolState(2), "cpu": PoolState(1)}
    assert decide(5.0, fleet, demand(3.0), PRICES, SPEC, Memory()) == decide(
        5.0, fleet, demand(3.0), PRICES, SPEC, Memory()
    )


def test_a_sane_figure_is_left_alone() -> None:
    assert clean_number(3.5) == 3.5
    assert clean_number("7") == 0.0  # type: ignore[arg-type]
    told = demand(3.0)
    assert clean_demand(told) is told
    state = PoolState(3, starting_age_s=(1.0,))
    assert clean_state(state) is state
    assert clean_price({"a": 2.0}, "a") == 2.0
    assert clean_price({}, "a") == clean_price({"a": math.nan}, "a") == clean_price({"a": -1.0}, "a") == 1e6
