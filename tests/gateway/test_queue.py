"""Waiting in the gateway for a replica, from the client's side: who is served, in what order, and what the others are
told.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.engine.scripted import Script, ScriptedEngine
from serving.protocol.asgi import Message
from serving.protocol.stats import DemandStats, PoolStats
from serving.router.line import Line
from serving.router.replica import Replica
from serving.tenancy.keys import NewKey
from tests.support.metrics import metric
from tests.support.stack import CHAT, MODEL, POOL, SPARE, Stack, chat, chat_bytes, start_stack, until
from tests.support.wire import Wire

NUM_SLOTS = 2
"""Of an engine that runs one at a time: the next is there already."""
LONG = "word " * 800
UNHURRIED = {"ttft_s": 60.0}
BOUNDS = {"max_prompt_tokens": 64, "max_output_tokens": 32}


def engine(**script: Any) -> ScriptedEngine:
    """One that runs one request at a time; `!stall` keeps it busy until its client leaves."""
    return ScriptedEngine(Script(max_num_seqs=1, **script))


def busy_stack(folder: Path, *engines: ScriptedEngine, **options: Any) -> Stack:
    return start_stack(folder, *(engines or [engine()]), **{"slo": UNHURRIED, **options})


def line_of(stack: Stack) -> Line:
    return stack.inference._dispatcher.routes[MODEL].line


def ready(stack: Stack) -> list[Replica]:
    return [replica for replica in stack.directory.all() if replica.is_ready]


async def heard_of(stack: Stack) -> None:
    """Until every replica has said what it is."""
    await stack.until(lambda: all(replica.load for replica in ready(stack)))


@asynccontextmanager
async def filled(stack: Stack) -> AsyncIterator[list[Wire]]:
    """All slots of the one replica that is ready are taken."""
    await heard_of(stack)
    wires = [await stack.open_chat(f"!stall {number}") for number in range(NUM_SLOTS)]
    try:
        await stack.until(lambda: ready(stack)[0].num_free_slots == 0)
        yield wires
    finally:
        free(wires)


def free(wires: Iterable[Wire]) -> None:
    """Their clients leave."""
    for wire in wires:
        wire.abort()


def bearer(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


async def wait_behind(
    stack: Stack, *prompts: str, key: str | None = None, **fields: object
) -> list[asyncio.Task[httpx.Response]]:
    """Requests that find no slot, one after the other."""
    tasks = []
    for prompt in prompts:
        num_arrived = demand_of(stack).num_arrived
        body = chat(prompt, max_tokens=1, **fields)
        tasks.append(asyncio.create_task(stack.client.post(CHAT, json=body, headers=bearer(key))))
        await until(lambda before=num_arrived: demand_of(stack).num_arrived > before)  # type: ignore[misc]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return tasks


def create_key(stack: Stack, tenant: str) -> str:
    minted, _ = stack.store.create(NewKey(tenant), os.urandom, time.time())
    stack.authenticator.refresh(time.time())
    return minted.plaintext


def order_of(**tasks: asyncio.Task[httpx.Response]) -> list[str]:
    """Grows by the name of each as it is answered."""
    names: list[str] = []
    for name, task in tasks.items():
        task.add_done_callback(lambda _, name=name: names.append(name))  # type: ignore[misc]
    return names


def demand_of(stack: Stack) -> DemandStats:
    return DemandStats.read(stack.inference.stats(), MODEL)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# -------------------------------------------------------------------------------------------------------------- in turn


async def test_a_request_waits_while_all_slots_are_taken_and_is_served_when_one_frees(tmp_path: Path) -> None:
    async with busy_stack(tmp_path) as stack, filled(stack) as busy:
        [waits] = await wait_behind(stack, "hello")
        assert line_of(stack).num_waiting == 1
        assert stack.engines[0].load().unfinished == NUM_SLOTS, "it waits here, not in the engine"
        free(busy)
        assert (await waits).status_code == 200


async def test_a_replica_that_turns_up_takes_what_waits(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, engine(), engine()) as stack:
        stack.set_members(["r0"])
        async with filled(stack):
            tasks = await wait_behind(stack, "one", "two")
            stack.set_members()
            assert [(await task).status_code for task in tasks] == [200, 200]


async def test_a_flood_of_one_tenant_keeps_no_other_waiting_behind_all_of_it(tmp_path: Path) -> None:
    async with busy_stack(tmp_path) as stack, filled(stack) as busy:
        flooding, other = create_key(stack, "flooding"), create_key(stack, "other")
        flood = await wait_behind(stack, *map(str, range(12)), key=flooding)
        [mine] = await wait_behind(stack, "mine", key=other)
        order = order_of(mine=mine, fourth=flood[3], last=flood[-1])
        free(busy)
        assert {response.status_code for response in await asyncio.gather(*flood, mine)} == {200}
        assert order == ["mine", "fourth", "last"]


async def test_the_flexible_tier_is_served_last(tmp_path: Path) -> None:
    async with busy_stack(tmp_path) as stack, filled(stack) as busy:
        [patient] = await wait_behind(stack, "patient", service_tier="flex")
        urgent = await wait_behind(stack, "one", "two", "three")
        order = order_of(patient=patient, last=urgent[-1])
        free(busy)
        assert (await patient).status_code == 200
        assert order == ["last", "patient"]


async def test_a_client_that_leaves_while_waiting_frees_its_place(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, limits={"max_queued_requests": 1}) as stack, filled(stack) as busy:
        async with await stack.open_chat("impatient"):
            await stack.until(lambda: line_of(stack).num_waiting == 1)
        await stack.until(lambda: line_of(stack).num_waiting == 0)
        [waits] = await wait_behind(stack, "hello")
        free(busy)
        assert (await waits).status_code == 200
        assert (await stack.request_line(status=499))["replica"] == ""


@pytest.mark.parametrize("num_turns_later", range(6))
async def test_a_client_that_leaves_at_the_moment_of_its_turn_leaves_nothing_behind(
    tmp_path: Path, num_turns_later: int
) -> None:
    """Its answer would be made for nobody, and its prompt would count as pending for ever."""
    left, body = asyncio.Event(), [chat_bytes("!stall at its turn", stream=True)]

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"content-type", b"application/json")]}
    async with busy_stack(tmp_path) as stack, filled(stack):
        request = asyncio.create_task(stack.gateway(scope, receive, send))  # type: ignore[arg-type]
        await until(lambda: line_of(stack).num_waiting == 1)
        [replica] = ready(stack)
        left.set()
        for _ in range(num_turns_later):
            await asyncio.sleep(0)
        replica.num_free_slots = 1
        line_of(stack).pump()
        await request
        await stack.until(lambda: replica.link.num_streams == NUM_SLOTS)
        assert line_of(stack).num_waiting == 0
        assert len(stack.inference._relays) == NUM_SLOTS
        await stack.until(lambda: replica.backlog_s == 0.0)


async def test_a_request_whose_replica_dies_after_long_may_wait_again_as_long_as_any(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, engine(prefill_s=0.05), engine()) as stack:
        stack.set_members(["r0"])
        await heard_of(stack)
        request = asyncio.create_task(stack.client.post(CHAT, json=chat(max_tokens=1)))
        await until(lambda: stack.engines[0].load().running)
        [relay] = stack.inference._relays
        relay._dispatch._waiting.arrived_s -= 3600.0  # it has been worked on for an hour
        stack.set_members([])
        await stack.replicas[0].close()
        await until(lambda: line_of(stack).num_waiting == 1)
        stack.set_members(["r1"])
        assert (await request).status_code == 200


# ---------------------------------------------------------------------------------------------------------- turned away


async def test_a_full_line_is_a_503_that_says_when_to_come_back(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, limits={"max_queued_requests": 2}) as stack, filled(stack) as busy:
        waiting = await wait_behind(stack, "one", "two")
        response = await stack.client.post(CHAT, json=chat())
        assert error_of(response) == (503, "server_is_overloaded")
        assert int(response.headers["retry-after"]) >= 1
        free(busy)
        assert [(await task).status_code for task in waiting] == [200, 200]


async def test_in_a_full_line_the_tenant_with_most_gives_way_with_a_429(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, limits={"max_queued_requests": 2}) as stack, filled(stack) as busy:
        flooding, other = create_key(stack, "flooding"), create_key(stack, "other")
        first, second = await wait_behind(stack, "one", "two", key=flooding)
        [mine] = await wait_behind(stack, "mine", key=other)
        response = await second
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        free(busy)
        assert [(await first).status_code, (await mine).status_code] == [200, 200]


async def test_a_request_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, limits={"queue_timeout_s": 0.05}) as stack, filled(stack):
        response = await stack.client.post(CHAT, json=chat())
        assert error_of(response) == (503, "server_is_overloaded")


async def test_where_no_replica_is_up_and_none_can_come_it_is_said_at_once(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, coming=lambda *_: None) as stack:
        stack.set_members([])
        response = await stack.client.post(CHAT, json=chat())
        assert error_of(response) == (503, "engine_unavailable")
        assert demand_of(stack).num_missed == 1
        assert 10 <= int(response.headers["retry-after"]) <= 13


async def test_where_one_comes_in_time_it_is_waited_for_and_where_later_it_is_said_when(tmp_path: Path) -> None:
    coming_s = 20.0
    async with busy_stack(tmp_path, coming=lambda *_: coming_s) as stack:
        stack.set_members([])
        [waits] = await wait_behind(stack, "hello")
        assert line_of(stack).num_waiting == 1
        coming_s = 90.0
        response = await waits
        assert error_of(response) == (503, "engine_unavailable")
        assert 90 <= int(response.headers["retry-after"]) <= 113


# ----------------------------------------------------------------------------------------------------- too late to meet


async def test_a_late_request_is_refused_where_the_model_sheds_and_counts_as_missed(tmp_path: Path) -> None:
    missed = metric("ballast_slo_requests_total", model=MODEL, outcome="missed")
    async with busy_stack(tmp_path, slo={"ttft_s": 0.2, "shed": True}) as stack, filled(stack) as busy:
        response = await stack.client.post(CHAT, json=chat())
        assert error_of(response) == (503, "server_is_overloaded")
        assert int(response.headers["retry-after"]) >= 1
        free(busy)
        assert demand_of(stack).num_missed == 1, "or the autoscaler would think that all is well"
    assert metric("ballast_slo_requests_total", model=MODEL, outcome="missed") == missed + 1


async def test_the_time_that_a_client_takes_to_send_its_request_is_its_own(tmp_path: Path) -> None:
    data = chat_bytes(max_tokens=1)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    async with start_stack(tmp_path, engine(), slo={"ttft_s": 1.0, "shed": True}) as stack:
        await heard_of(stack)
        async with await stack.wire() as wire:
            await wire.send(head.encode() + data[:10])
            await asyncio.sleep(1.2)
            await wire.send(data[10:])
            assert (await wire.answer()).status == 200
        await stack.until(lambda: demand_of(stack).num_met == 1)
        assert demand_of(stack).num_missed == 0


async def test_a_late_request_is_served_late_where_the_model_does_not_shed_and_missed_once(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, slo={"ttft_s": 0.2}) as stack, filled(stack) as busy:
        [waits] = await wait_behind(stack, "hello")
        await stack.until(lambda: demand_of(stack).num_late == 1)
        seen = demand_of(stack)
        assert (seen.num_queued, seen.num_missed) == (0, 1)
        assert seen.oldest_late_s > 0.0
        assert seen.late_prompt_tokens > 0
        free(busy)
        assert (await waits).status_code == 200
        assert demand_of(stack).num_missed == 1


async def test_whoever_gives_up_on_a_late_answer_counts_as_missed(tmp_path: Path) -> None:
    """Or an engine that answers nobody would look well to the autoscaler."""
    missed = metric("ballast_slo_requests_total", model=MODEL, outcome="missed")
    async with start_stack(tmp_path, engine(), slo={"ttft_s": 0.05}) as stack:
        wire = await stack.open_chat("!stall")
        await until(lambda: stack.engines[0].load().running)
        await asyncio.sleep(0.1)
        stack.tick(0.0)  # from now on it is watched whether the client stays
        await wire.close()
        await stack.until(lambda: metric("ballast_slo_requests_total", model=MODEL, outcome="missed") == missed + 1)


async def test_whoever_is_turned_away_counts_as_missed(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, limits={"max_queued_requests": 1}) as stack, filled(stack) as busy:
        [waits] = await wait_behind(stack, "one")
        assert (await stack.client.post(CHAT, json=chat())).status_code == 503
        assert demand_of(stack).num_missed == 1
        free(busy)
        assert (await waits).status_code == 200
        assert demand_of(stack).num_missed == 1


async def test_what_only_counts_tokens_has_no_deadline_to_miss(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, slo={"ttft_s": 0.01}, limits={"queue_timeout_s": 0.05}) as stack:
        stack.set_members([])
        response = await stack.client.post("/v1/messages/count_tokens", json=chat())
        assert response.status_code == 503
        assert demand_of(stack).num_missed == 0


# ------------------------------------------------------------------------------------------------------- fallback pools


async def with_spare(stack: Stack, names: list[str] | None = None) -> ScriptedEngine:
    """A replica of the fallback pool beside ``r0``, and no others than ``names`` from now on. Returns its engine."""
    spare = engine()
    await stack.add_replica(spare, SPARE)
    stack.set_members(names)
    await stack.until(lambda: len(ready(stack)) == len(names or stack.replicas))
    await heard_of(stack)
    return spare


async def test_a_fallback_pool_stands_in_where_no_primary_replica_is_up_and_says_so(tmp_path: Path) -> None:
    reason = {"model": MODEL, "pool": SPARE, "reason": "no-primary-replica"}
    served = metric("ballast_fallbacks_total", **reason)
    async with busy_stack(tmp_path, fallback=BOUNDS) as stack:
        await with_spare(stack, ["r1"])
        response = await stack.client.post(CHAT, json=chat(max_tokens=2))
        assert response.status_code == 200
        assert response.headers["x-ballast-fallback"] == "no-primary-replica"
        assert response.headers["x-ballast-pool"] == SPARE
        assert (await stack.request_line(status=200))["fallback"] == "no-primary-replica"
    assert metric("ballast_fallbacks_total", **reason) == served + 1


@pytest.mark.parametrize("over", [{"prompt": LONG, "max_tokens": 2}, {"max_tokens": 33}, {}])
async def test_a_fallback_pool_takes_nothing_over_its_bounds(tmp_path: Path, over: dict[str, Any]) -> None:
    """An answer without a limit counts with its expected length."""
    async with busy_stack(tmp_path, fallback=BOUNDS, coming=lambda *_: None) as stack:
        spare = await with_spare(stack, ["r1"])
        assert (await stack.client.post(CHAT, json=chat(**over))).status_code == 503
        assert spare.load().iterations == 0


async def test_the_servers_own_bound_on_answers_closes_no_fallback_pool(tmp_path: Path) -> None:
    limits = {"max_output_tokens": 1000}
    bounds = {"max_prompt_tokens": 100, "max_output_tokens": 200}
    async with busy_stack(tmp_path, fallback=bounds, limits=limits, coming=lambda *_: None) as stack:
        await with_spare(stack, ["r1"])
        assert (await stack.client.post(CHAT, json=chat())).status_code == 200
        assert (await stack.client.post(CHAT, json=chat(max_tokens=900))).status_code == 503


async def test_a_fallback_pool_serves_the_keys_that_it_is_for(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, fallback=BOUNDS | {"keys": ["nobody"]}, coming=lambda *_: None) as stack:
        await with_spare(stack, ["r1"])
        response = await stack.client.post(CHAT, json=chat(max_tokens=2), headers=bearer(create_key(stack, "other")))
        assert response.status_code == 503


async def test_a_fallback_pool_takes_what_would_be_late_elsewhere(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, engine(step_s=5.0), fallback=BOUNDS, slo={"ttft_s": 1.5}) as stack:
        await with_spare(stack)
        async with await stack.open_chat("!stall " + LONG):
            await stack.until(lambda: stack.engines[0].load().running == 1)
            response = await stack.client.post(CHAT, json=chat(max_tokens=2))
            assert response.headers["x-ballast-fallback"] == "too-late-elsewhere"


async def test_a_fallback_pool_is_left_alone_while_the_primary_one_will_do(tmp_path: Path) -> None:
    async with busy_stack(tmp_path, fallback=BOUNDS) as stack:
        await with_spare(stack)
        for _ in range(5):
            response = await stack.client.post(CHAT, json=chat(max_tokens=2))
            assert "x-ballast-fallback" not in response.headers
            assert response.headers["x-ballast-pool"] == POOL


# ----------------------------------------------------------------------------------------------------- what is reported


async def test_the_autoscaler_hears_what_came_and_what_waits_and_how_fast_replicas_are(tmp_path: Path) -> None:
    async with busy_stack(tmp_path) as stack:
        assert (await stack.client.post(CHAT, json=chat("one two three", max_tokens=4))).status_code == 200
        async with filled(stack) as busy:
            [waits] = await wait_behind(stack, "hello")
            stats = stack.inference.stats()
            seen, pool = DemandStats.read(stats, MODEL), PoolStats.read(stats, MODEL, POOL)
            assert (seen.num_arrived, seen.num_finished, seen.output_tokens, seen.num_met) == (4, 1, 4, 1)
            assert (seen.num_queued, seen.num_late) == (1, 0)
            assert sum(DemandStats.read_prompts(stats, MODEL, 20)) == 4
            assert pool.max_num_seqs == 1
            assert pool.cp_s_per_token > 0.0
            free(busy)
            await waits


async def test_counting_a_prompts_tokens_caches_nothing(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": LONG + "!stall"}]
    async with busy_stack(tmp_path) as stack:
        await stack.client.post("/v1/messages/count_tokens", json=chat() | {"messages": messages})
        async with await stack.wire() as wire:
            await wire.post(CHAT, json.dumps(chat(stream=True) | {"messages": messages}).encode())
            [replica] = ready(stack)
            await stack.until(lambda: replica.load and replica.load["pending_prompt_tokens"])
            assert replica.backlog_s * replica.prefill_tokens_per_s > 500


async def test_a_schema_for_the_answer_is_no_prompt(tmp_path: Path) -> None:
    """Or prompts would be taken for shorter than they are, others' too."""
    schema = {"type": "object", "properties": {f"property_{index}": {"type": "string"} for index in range(60)}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with busy_stack(tmp_path) as stack:
        for fields in ({}, {"response_format": wanted}):
            assert (await stack.client.post(CHAT, json=chat(LONG, max_tokens=1, **fields))).status_code == 200
        demand = stack.inference._dispatcher.routes[MODEL].demand
        assert demand.expected_prompt_tokens(len(LONG)) == pytest.approx(800, rel=0.05)


async def test_a_prompt_that_is_cached_counts_for_what_is_left_of_it(tmp_path: Path) -> None:
    """Also when the replica reports it: what it says beyond our own count is taken for other gateways'."""
    async with busy_stack(tmp_path) as stack:
        first = [{"role": "user", "content": LONG}]
        assert (await stack.client.post(CHAT, json=chat(max_tokens=1) | {"messages": first})).status_code == 200
        second = [*first, {"role": "assistant", "content": "w0"}, {"role": "user", "content": "!stall"}]
        async with await stack.wire() as wire:
            await wire.post(CHAT, json.dumps(chat(stream=True) | {"messages": second}).encode())
            [replica] = ready(stack)
            await stack.until(lambda: replica.load and replica.load["pending_prompt_tokens"])
            assert 0 < replica.backlog_s * replica.prefill_tokens_per_s < 100
