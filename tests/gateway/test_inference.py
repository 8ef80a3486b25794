"""Choosing a replica and waiting for one."""

import asyncio
import json
from pathlib import Path

from serving.engine.scripted import Script, ScriptedEngine
from tests.support.engines import AppEngine, Recorder
from tests.support.stack import CHAT, MODEL, Stack, chat, start_stack


async def test_a_request_waits_for_a_replica_to_come(stack: Stack) -> None:
    stack.set_members([])
    request = asyncio.create_task(stack.client.post(CHAT, json=chat(max_tokens=1)))
    await stack.until(lambda: stack.inference.num_in_flight)
    stack.set_members()
    assert (await request).status_code == 200


async def test_no_replica_in_time_is_a_503_with_retry_after(tmp_path: Path) -> None:
    async with start_stack(tmp_path, limits={"queue_timeout_s": 0.05}) as stack:
        stack.set_members([])
        response = await stack.client.post(CHAT, json=chat())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
        assert response.headers["retry-after"] == "1"


async def test_a_client_that_leaves_while_waiting_for_a_replica_frees_its_place(stack: Stack) -> None:
    stack.set_members([])
    wire = await stack.open_chat()
    await stack.until(lambda: stack.inference.num_in_flight)
    async with asyncio.timeout(1):
        wire.abort()
        await stack.until(lambda: stack.inference.num_in_flight == 0)
    line = await stack.request_line(status=499)
    assert (line["replica"], line["output_tokens"]) == ("", 0)


async def test_requests_go_to_every_replica(tmp_path: Path) -> None:
    engines = [ScriptedEngine(Script()) for _ in range(3)]
    async with start_stack(tmp_path, *engines) as stack:
        wires = [await stack.open_chat(f"{number} !stall") for number in range(12)]
        await stack.until(lambda: sum(engine.load().running for engine in engines) == 12)
        assert all(engine.load().running for engine in engines)
        for wire in wires:
            wire.abort()
        await stack.until(lambda: sum(len(engine.aborted) for engine in engines) == 12)


async def test_a_replica_that_left_serves_its_streams_to_the_end_and_no_more(tmp_path: Path) -> None:
    engines = [ScriptedEngine(Script(step_s=0.002)), ScriptedEngine(Script())]
    async with start_stack(tmp_path, *engines) as stack:
        stack.set_members(["r0"])
        async with await stack.open_chat(max_tokens=20) as wire:
            await wire.read_until(b"w0 ")
            stack.set_members(["r1"])
            await stack.until_ready(1)
            response = await stack.client.post(CHAT, json=chat(max_tokens=1))
            assert response.status_code == 200
            assert b"[DONE]" in await wire.read_until(b"0\r\n\r\n")
        assert [engine.load().generated_tokens for engine in engines] == [20, 1]


async def test_the_engine_gets_the_checked_body(tmp_path: Path) -> None:
    """What the gateway overwrites is overwritten: the tenant's cache salt goes in, a client's priority does not."""
    recorder = Recorder()
    async with start_stack(tmp_path, AppEngine(recorder)) as stack:
        assert (await stack.client.post(CHAT, json=chat(user="me"))).status_code == 200
        [sent] = (json.loads(body) for body in recorder.bodies)
        assert sent["model"] == MODEL
        assert len(sent["cache_salt"]) == 64
        assert (await stack.client.post(CHAT, json=chat(cache_salt="mine", priority=-5))).status_code in (200, 400)
        assert all(b"mine" not in body and b"priority" not in body for body in recorder.bodies)
