"""Where requests wait in the gateway: who is next, who gives way, and what those are told who wait in vain."""

import asyncio
import math
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.clock import ManualClock
from serving.errors import EngineUnavailable, Overloaded, RateLimited, ReplicaLost
from serving.router.choice import Rules
from serving.router.line import MAX_RETRY_AFTER_S, Line
from serving.router.waiting import Waiting

SLO_S = 5.0


@dataclass(slots=True)
class Replica:
    """What the line looks at; it takes ``num_free_slots`` more."""

    name: str = "gpu"
    is_ready: bool = True
    is_fallback: bool = False
    backlog_s: float = 0.0
    prefill_tokens_per_s: float = 1000.0
    tpot_s: float = 0.03
    num_running: int = 0
    num_free_slots: int = 0
    num_queue_slots: int = 0
    kv_free_tokens: int = 1_000_000


class Hall:
    """A line on a manual clock, and the replicas before it."""

    def __init__(self, max_waiting: int = 100, timeout_s: float = 30.0, *, is_shedding: bool = False) -> None:
        self.clock = ManualClock()
        self.gpu = Replica()
        self.replicas = [self.gpu]
        self.coming_s: float | None = math.nan
        self.sent: list[str] = []
        self.late: list[str] = []
        rules = Rules(tpot_slo_s=0.15, is_shedding=is_shedding)
        self.line = Line(
            rules, max_waiting, timeout_s, lambda _: self.coming_s, None, random.Random(0), self.clock.monotonic_s
        )

    def request(self, name: str, tokens: int = 100, **changes: Any) -> Waiting:
        """One whose tenant is the name's first letter."""

        def send(replica: Replica) -> None:
            self.sent.append(name)
            replica.num_free_slots -= 1

        now_s = self.clock.monotonic_s()
        fields = {
            "prompt_tokens": tokens, "expected_output_tokens": 0.0, "deadline_s": now_s + SLO_S, "is_batch": False,
            "allows_fallback": False, "tenant": name[0], "replicas": lambda: self.replicas, "send": send,
            "on_late": lambda: self.late.append(name), "arrived_s": now_s,
        }  # fmt: skip
        return Waiting(**fields | changes)  # type: ignore[arg-type]

    async def enter(self, *waiting: Waiting) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.line.wait(each)) for each in waiting]
        await asyncio.sleep(0)
        return tasks

    async def crowd(self, *names: str) -> list[asyncio.Task[None]]:
        return await self.enter(*map(self.request, names))

    async def serve(self, number: int) -> list[str]:
        """Let the GPU take so many more. Returns whom it took."""
        num_before = len(self.sent)
        self.gpu.num_free_slots = number
        self.line.pump()
        self.gpu.num_free_slots = 0
        await asyncio.sleep(0)
        return self.sent[num_before:]


async def outcomes(tasks: list[asyncio.Task[None]]) -> list[object]:
    """What has become of each, by now; None: it was sent. Those that still wait leave."""
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def refusal(waiting: Coroutine[Any, Any, None]) -> Any:
    with pytest.raises((Overloaded, RateLimited, EngineUnavailable)) as caught:
        await waiting
    return caught.value


# ---------------------------------------------------------------------------------------------------------- who is next


async def test_a_request_that_finds_a_replica_open_does_not_wait() -> None:
    hall = Hall()
    hall.gpu.num_free_slots = 1
    assert hall.line.passes(hall.request("a"))
    assert not hall.line.passes(hall.request("b"))
    assert hall.sent == ["a"]


async def test_a_flood_leaves_a_slot_to_others_until_it_ends() -> None:
    hall = Hall()
    hall.gpu.num_free_slots, hall.gpu.num_running = 5, 15
    flood = [hall.request(f"f{number}") for number in range(5)]
    assert [hall.line.passes(each) for each in flood[:2]] == [True, True]
    assert hall.line.passes(hall.request("v"))
    assert hall.line.passes(flood[2])
    assert not hall.line.passes(flood[3])
    assert hall.line.passes(hall.request("v again"))
    for each in [*flood, *flood]:
        hall.line.end(each)
    hall.gpu.num_free_slots = 1
    assert hall.line.passes(flood[4])


async def test_who_is_held_back_stands_in_nobodys_way() -> None:
    hall = Hall()
    hall.gpu.num_free_slots = 5
    flood = [hall.request(f"f{number}") for number in range(9)]
    assert [hall.line.passes(each) for each in flood[:2]] == [True, True]
    assert hall.line.passes(hall.request("v1"))
    hall.gpu.num_free_slots = 0
    hall.gpu.num_running = 5
    await hall.enter(*flood[2:])
    assert not hall.line.passes(hall.request("v2"))
    await hall.crowd("v2", "w1")
    assert await hall.serve(1) == ["v2"]
    assert await hall.serve(1) == ["w1"]
    assert await hall.serve(1) == []
    hall.gpu.num_free_slots = 1
    assert hall.line.passes(hall.request("v3"))
    assert await hall.serve(2) == ["f2"]


async def test_nobody_overtakes_those_who_wait() -> None:
    hall = Hall()
    await hall.crowd("a1", "a2")
    hall.gpu.num_free_slots = 1
    assert not hall.line.passes(hall.request("b"))
    assert await hall.serve(2) == ["a1", "a2"]
    assert hall.line.num_waiting == 0


async def test_those_in_time_come_before_the_late_and_those_before_batch() -> None:
    hall = Hall()
    batch = hall.request("batch", is_batch=True)
    late, in_time = hall.request("late", deadline_s=0.0), hall.request("in time")
    await hall.enter(batch, late, in_time)
    assert await hall.serve(1) == ["in time"]
    assert await hall.serve(2) == ["late", "batch"]


async def test_a_request_in_time_does_not_wait_behind_late_ones_and_batch() -> None:
    """A batch request may wait long for room in the KV cache; that must not cost everybody else a load report."""
    hall = Hall()
    hall.gpu.num_running, hall.gpu.num_free_slots, hall.gpu.kv_free_tokens = 1, 9, 500
    await hall.enter(hall.request("batch", tokens=900, is_batch=True), hall.request("late", tokens=900, is_late=True))
    assert hall.line.passes(hall.request("in time"))
    assert not hall.line.passes(hall.request("more batch", is_batch=True))
    assert hall.sent == ["in time"]


async def test_one_that_has_become_late_waits_behind_others_that_are() -> None:
    hall = Hall()
    hall.gpu.num_running, hall.gpu.num_free_slots, hall.gpu.kv_free_tokens = 1, 9, 500
    await hall.enter(hall.request("big", tokens=900, is_late=True))
    assert not hall.line.passes(hall.request("small", deadline_s=0.0))
    assert hall.sent == []


async def test_of_one_tenant_the_earliest_deadline_comes_first() -> None:
    hall = Hall()
    await hall.enter(*[hall.request(f"a{due_s}", deadline_s=float(due_s)) for due_s in (3, 1, 2, 4, 1)])
    assert await hall.serve(9) == ["a1", "a1", "a2", "a3", "a4"]


async def test_a_flood_of_one_tenant_keeps_no_other_waiting_behind_it() -> None:
    hall = Hall()
    await hall.crowd(*[f"a{number}" for number in range(50)])
    await hall.crowd("b0", "b1")
    assert set(await hall.serve(4)) == {"a0", "a1", "b0", "b1"}


async def test_a_tenant_is_served_by_its_tokens_not_by_its_requests() -> None:
    hall = Hall()
    big = [hall.request(f"b{number}", tokens=300) for number in range(6)]
    await hall.enter(*big, *[hall.request(f"s{number}", tokens=100) for number in range(20)])
    served = await hall.serve(12)
    assert sum(name[0] == "b" for name in served) == 3


async def test_answers_count_as_well_as_prompts() -> None:
    hall = Hall()
    talkative = [hall.request(f"t{number}", expected_output_tokens=150.0) for number in range(6)]
    await hall.enter(*talkative, *[hall.request(f"q{number}") for number in range(20)])
    assert sum(name[0] == "t" for name in await hall.serve(10)) == 2


async def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    hall = Hall()
    await hall.crowd(*[f"a{number}" for number in range(30)])
    await hall.serve(20)
    await hall.crowd(*[f"b{number}" for number in range(30)])
    assert sum(name[0] == "b" for name in await hall.serve(6)) == 3


async def test_what_a_tenant_had_in_an_earlier_crowd_is_not_held_against_it() -> None:
    hall = Hall()
    await hall.crowd(*[f"a{number}" for number in range(90)])
    assert len(await hall.serve(99)) == 90
    await hall.crowd(*[f"b{number}" for number in range(30)])
    await hall.crowd("a90")
    assert "a90" in await hall.serve(3)


async def test_accounts_of_tenants_that_are_gone_are_dropped() -> None:
    """Tenants come and go for years."""
    hall = Hall()
    await hall.crowd("stays")
    for number in range(2000):
        tasks = await hall.enter(hall.request("x", tenant=f"tenant {number}"))
        await outcomes(tasks)
    assert len(hall.line._accounts) < 1100


@given(crowds=st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_equal_requests_of_tenants_who_wait_are_served_in_turns(crowds: list[str]) -> None:
    async def run() -> None:
        hall = Hall()
        await hall.crowd(*crowds)
        left = {tenant: crowds.count(tenant) for tenant in set(crowds)}
        served = dict.fromkeys(left, 0)
        while hall.line.num_waiting:
            [tenant] = await hall.serve(1)
            served[tenant] += 1
            left[tenant] -= 1
            waiting = [served[other] for other in left if left[other]]
            assert not waiting or max(served.values()) - min(waiting) <= 1

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------------- being too late


async def test_a_request_that_cannot_be_in_time_is_served_late_and_counted_once() -> None:
    hall = Hall()
    await hall.crowd("a")
    hall.clock.advance(SLO_S)
    hall.line.tick()
    hall.line.tick()
    assert hall.late == ["a"]
    assert [waiting.tenant for waiting in hall.line.late] == ["a"]
    assert hall.line.num_waiting == hall.line.num_late
    assert await hall.serve(1) == ["a"]


async def test_a_request_that_comes_too_late_is_late_at_once() -> None:
    hall = Hall()
    hall.gpu.num_free_slots = 1
    assert hall.line.passes(hall.request("a", deadline_s=0.0))
    assert (hall.late, hall.sent) == (["a"], ["a"])


async def test_where_the_late_are_refused_they_are_told_when_to_come_back() -> None:
    hall = Hall(is_shedding=True)
    with pytest.raises(Overloaded, match="in time") as caught:
        hall.line.passes(hall.request("a", deadline_s=0.0))
    assert caught.value.retry_after_s
    [task] = await hall.crowd("b")
    hall.clock.advance(SLO_S)
    hall.line.tick()
    assert isinstance(await refusal(task), Overloaded)  # type: ignore[arg-type]
    assert (hall.late, hall.sent) == ([], [])


async def test_batch_is_never_late() -> None:
    hall = Hall(is_shedding=True)
    await hall.enter(hall.request("batch", is_batch=True))
    hall.clock.advance(SLO_S + 10.0)
    hall.line.tick()
    assert await hall.serve(1) == ["batch"]


# ----------------------------------------------------------------------------------------------------------- full lines


async def test_a_line_that_one_tenant_has_filled_is_a_503_for_it() -> None:
    hall = Hall(max_waiting=3)
    tasks = await hall.crowd("a1", "a2", "a3")
    error = await refusal(hall.line.wait(hall.request("a4")))
    assert isinstance(error, Overloaded)
    assert "3 requests" in error.message
    assert error.retry_after_s >= 1.0
    assert not any(task.done() for task in tasks)


async def test_a_full_line_takes_another_tenant_and_the_biggest_gives_way_with_a_429() -> None:
    hall = Hall(max_waiting=3)
    first, second, third = await hall.crowd("a1", "a2", "a3")
    await hall.crowd("b1")
    error = await refusal(third)  # type: ignore[arg-type]
    assert isinstance(error, RateLimited)
    assert error.retry_after_s >= 1.0
    assert not first.done()
    assert not second.done()
    assert isinstance(await refusal(hall.line.wait(hall.request("a4"))), RateLimited)
    assert await hall.serve(9) == ["b1", "a1", "a2"], "of equals, who has fewer waiting"


async def test_in_a_line_shared_fairly_whoever_comes_is_told_that_it_is_full() -> None:
    hall = Hall(max_waiting=4)
    tasks = await hall.crowd("a1", "a2", "b1", "b2")
    assert isinstance(await refusal(hall.line.wait(hall.request("b3"))), Overloaded)
    assert not any(task.done() for task in tasks)


async def test_batch_gives_way_first_also_to_its_own_tenant() -> None:
    """Without keys there is one tenant: its batch jobs must not shut out whoever waits for an answer."""
    hall = Hall(max_waiting=3)
    tasks = await hall.enter(*[hall.request(f"a{number}", is_batch=True) for number in range(3)])
    await hall.crowd("a3", "a4")
    assert [type(outcome) for outcome in await outcomes(tasks[1:])] == [Overloaded, Overloaded]
    assert await hall.serve(9) == ["a3", "a4", "a0"]


async def test_nobody_gives_way_to_one_that_cannot_be_served() -> None:
    hall = Hall(max_waiting=2)
    tasks = await hall.crowd("a1", "a2")
    nowhere = hall.request("b1", replicas=list)
    hall.coming_s = None
    assert isinstance(await refusal(hall.line.wait(nowhere)), EngineUnavailable)
    assert not any(task.done() for task in tasks)


async def test_retry_after_follows_the_rate_at_which_the_line_moves() -> None:
    hall = Hall(max_waiting=20)
    await hall.crowd(*[f"a{number}" for number in range(20)])
    still = await refusal(hall.line.wait(hall.request("a")))
    for _ in range(100):
        await hall.serve(1)
        hall.clock.advance(0.5)
        await hall.crowd("a")
    moving = await refusal(hall.line.wait(hall.request("a")))
    assert moving.retry_after_s == pytest.approx(20 / 2.0, rel=0.4)
    assert moving.retry_after_s < still.retry_after_s <= 1.25 * MAX_RETRY_AFTER_S
    hall.clock.advance(1e6)
    assert math.isfinite((await refusal(hall.line.wait(hall.request("a")))).retry_after_s)


async def test_refusals_are_spread_so_that_not_all_come_back_at_once() -> None:
    hall = Hall(max_waiting=1)
    await hall.crowd("a")
    times_s = [(await refusal(hall.line.wait(hall.request("a")))).retry_after_s for _ in range(20)]
    assert len(set(times_s)) == 20


# ---------------------------------------------------------------------------------------------------- waiting in vain


async def test_waiting_is_bounded() -> None:
    hall = Hall(timeout_s=0.001)
    assert isinstance(await refusal(hall.line.wait(hall.request("a"))), Overloaded)
    hall.gpu.is_ready = False
    assert isinstance(await refusal(hall.line.wait(hall.request("a"))), EngineUnavailable)
    assert hall.line.num_waiting == 0


@pytest.mark.parametrize(("coming_s", "retry_after_s"), [(None, 10.0), (31.0, 31.0), (9999.0, 120.0)])
async def test_where_none_will_be_ready_in_time_it_is_said_at_once(
    coming_s: float | None, retry_after_s: float
) -> None:
    hall = Hall()
    hall.gpu.is_ready, hall.coming_s = False, coming_s
    error = await refusal(hall.line.wait(hall.request("a")))
    assert isinstance(error, EngineUnavailable)
    assert retry_after_s <= error.retry_after_s <= min(120.0, 1.25 * retry_after_s), "the openai client heeds 120 s"
    assert hall.line.turned_away == ([100] if coming_s is not None else [])
    hall.clock.advance(11.0)
    assert hall.line.turned_away == []


@pytest.mark.parametrize("coming_s", [0.0, 29.0, math.nan])
async def test_one_waits_for_a_replica_that_comes_in_time_or_may(coming_s: float) -> None:
    hall = Hall()
    hall.gpu.is_ready, hall.coming_s = False, coming_s
    [task] = await hall.crowd("a")
    hall.line.tick()
    assert not task.done()
    hall.gpu.is_ready = True
    assert await hall.serve(1) == ["a"]
    await task


async def test_who_waits_is_told_when_help_will_not_come_after_all() -> None:
    hall = Hall()
    hall.gpu.is_ready, hall.coming_s = False, 20.0
    tasks = await hall.crowd("a", "b")
    hall.coming_s = None
    hall.line.tick()
    assert [type(outcome) for outcome in await outcomes(tasks)] == [EngineUnavailable, EngineUnavailable]


async def test_when_the_gateway_stops_whoever_waits_is_told_so() -> None:
    hall = Hall()
    tasks = await hall.enter(hall.request("a"), hall.request("late", is_late=True), hall.request("b", is_batch=True))
    hall.line.close()
    assert [type(outcome) for outcome in await outcomes(tasks)] == [EngineUnavailable] * 3
    assert hall.line.num_waiting == 0


async def test_nobody_is_sent_any_more_when_the_gateway_has_stopped() -> None:
    """Whoever was still being read or checked then would be cut off in the middle of an answer."""
    hall = Hall()
    hall.line.close()
    with pytest.raises(EngineUnavailable):
        hall.line.passes(hall.request("a"))
    with pytest.raises(EngineUnavailable):
        await hall.line.wait(hall.request("b"))


async def test_who_leaves_frees_its_place() -> None:
    hall = Hall(max_waiting=1)
    [task] = await hall.crowd("a")
    task.cancel()
    await asyncio.sleep(0)
    await hall.crowd("b")
    assert await hall.serve(9) == ["b"]


async def test_who_has_just_left_is_not_sent() -> None:
    """Its answer would be made for nobody, to its end."""
    hall = Hall()
    gone, there = await hall.crowd("a", "b")
    gone.cancel()
    assert await hall.serve(9) == ["b"]
    await there


async def at_once(hall: Hall, *events: tuple[float, Any]) -> asyncio.Task[None]:
    """A request with 10 ms of time, and ``events`` (in ms), all in one turn of the event loop."""
    [task] = await hall.crowd("a")
    loop = asyncio.get_running_loop()
    for at_ms, event in events:
        loop.call_later(at_ms / 1000, event)
    time.sleep(0.02)  # noqa: ASYNC251  (so that the loop finds all of it due)
    return task


async def test_one_whose_time_is_up_is_not_sent_any_more() -> None:
    hall = Hall(timeout_s=0.01)
    hall.gpu.num_free_slots = 1
    task = await at_once(hall, (11.0, hall.line.pump))
    assert isinstance(await refusal(task), Overloaded)  # type: ignore[arg-type]
    assert hall.sent == []


async def test_one_that_was_sent_in_the_turn_in_which_its_time_ends_is_served() -> None:
    hall = Hall(timeout_s=0.01)
    hall.gpu.num_free_slots = 1
    task = await at_once(hall, (1.0, hall.line.pump))
    await task
    assert hall.sent == ["a"]


async def test_a_replica_lost_in_that_moment_is_told_to_whoever_waited() -> None:
    hall = Hall()

    def lost(_: object) -> None:
        raise ReplicaLost("gone")

    [task] = await hall.enter(hall.request("a", send=lost))
    await hall.serve(1)
    with pytest.raises(ReplicaLost):
        await task
    hall.gpu.num_free_slots = 1
    with pytest.raises(ReplicaLost):
        hall.line.passes(hall.request("b", send=lost))


async def test_a_request_may_come_again_when_its_replica_was_lost() -> None:
    hall = Hall()
    waiting = hall.request("a")
    await hall.enter(waiting)
    await hall.serve(1)
    await hall.enter(waiting)
    assert await hall.serve(1) == ["a"]
    hall.gpu.num_free_slots = 1
    assert hall.line.passes(waiting)
    assert hall.sent == ["a", "a", "a"]


# ------------------------------------------------------------------------------------------------------- fallback pools


def with_cpu(hall: Hall, num_free_slots: int = 1) -> Replica:
    cpu = Replica("cpu", is_fallback=True, num_free_slots=num_free_slots)
    hall.replicas.append(cpu)
    return cpu


async def test_a_fallback_replica_takes_what_those_before_it_would_make_late() -> None:
    hall = Hall()
    hall.gpu.backlog_s = 1.0
    await hall.enter(*[hall.request(f"a{number}", tokens=1000) for number in range(5)])
    cpu = with_cpu(hall)
    assert not hall.line.passes(hall.request("bound to the GPU"))
    assert hall.line.passes(hall.request("free", allows_fallback=True))
    assert cpu.num_free_slots == 0


async def test_a_fallback_replica_is_left_alone_while_the_primary_one_will_do() -> None:
    hall = Hall()
    hall.gpu.backlog_s = 1.0
    await hall.crowd("a")
    with_cpu(hall)
    assert not hall.line.passes(hall.request("free", allows_fallback=True))
    assert not hall.line.passes(hall.request("batch", allows_fallback=True, is_batch=True))


async def test_a_fallback_replica_is_offered_to_every_tenant_near_the_front() -> None:
    hall = Hall()
    hall.gpu.is_ready = False
    await hall.enter(*[hall.request(f"a{number}") for number in range(30)])
    await hall.enter(hall.request("b", allows_fallback=True))
    with_cpu(hall)
    hall.line.pump()
    assert hall.sent == ["b"]
    assert hall.line.num_waiting == 30


async def test_who_may_use_no_fallback_replica_keeps_none_from_those_who_may() -> None:
    hall = Hall()
    hall.gpu.is_ready = False
    await hall.enter(hall.request("a1", is_late=True), hall.request("a2"))
    await hall.enter(hall.request("b", allows_fallback=True, is_late=True))
    await hall.enter(hall.request("c", allows_fallback=True, is_batch=True))
    cpu = with_cpu(hall, num_free_slots=2)
    hall.line.pump()
    assert hall.sent == ["b", "c"]
    assert cpu.num_free_slots == 0
    assert hall.line.num_waiting == 2


# ------------------------------------------------------------------------------------------------------------ all of it

_EVENTS = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from("abc"), st.integers(1, 2000), st.booleans(), st.booleans()),
    st.tuples(st.just("serve"), st.integers(0, 3)),
    st.tuples(st.just("advance"), st.floats(0.0, 4.0)),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("coming"), st.sampled_from([None, 1.0, math.nan])),
    st.tuples(st.just("ready"), st.booleans()),
)


@settings(max_examples=150)
@given(events=st.lists(_EVENTS, max_size=40), is_shedding=st.booleans())
def test_every_request_ends_exactly_once_and_the_line_stays_within_its_bound(
    events: list[Any], is_shedding: bool
) -> None:
    async def run() -> None:
        hall, tasks = Hall(max_waiting=5, is_shedding=is_shedding), {}
        for number, (kind, *values) in enumerate(events):
            if kind == "enter":
                tenant, tokens, is_batch, is_free = values
                name = f"{tenant}{number}"
                waiting = hall.request(name, tokens, is_batch=is_batch, allows_fallback=is_free)
                [tasks[name]] = await hall.enter(waiting)
            elif kind == "serve":
                await hall.serve(values[0])
            elif kind == "advance":
                hall.clock.advance(values[0])
                hall.line.tick()
            elif kind == "leave" and tasks:
                list(tasks.values())[values[0] % len(tasks)].cancel()
            elif kind == "coming":
                hall.coming_s = values[0]
            elif kind == "ready":
                hall.gpu.is_ready = values[0]
            assert hall.line.num_waiting <= 5
        ended = dict(zip(tasks, await outcomes(list(tasks.values())), strict=True))
        assert sorted(hall.sent) == sorted(name for name, outcome in ended.items() if outcome is None)
        assert hall.line.num_waiting == 0

    asyncio.run(run())
