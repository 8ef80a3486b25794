"""Losing a replica: the request goes on elsewhere, and a client that gets its answer cannot tell."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.engine.base import RequestContext
from serving.engine.scripted import Script, ScriptedEngine, ScriptedFailure
from serving.errors import ReplicaSilent
from serving.gateway.dispatch import Dispatch
from serving.protocol.asgi import Message, Receive, Scope, Send
from serving.protocol.frames import NO_USAGE
from serving.router.breaker import NUM_FAILURES
from serving.router.link import StreamFailed
from tests.support.engines import AppEngine, NeighbourEngine, Recorder
from tests.support.metrics import metric
from tests.support.stack import CHAT, MODEL, Json, Stack, chat, start_stack, until
from tests.support.wire import Wire

NUM_WORDS = 40
NEVER = 10**6


def engines(num: int = 2, **script: object) -> list[ScriptedEngine]:
    """The first strikes after two tokens when ordered to, the others never do."""
    slow = {"step_s": 0.003, **script}
    return [ScriptedEngine(Script(break_after_tokens=NEVER if index else 2, **slow)) for index in range(num)]  # type: ignore[arg-type]


def events(answer: bytes) -> list[Json]:
    return [json.loads(line[6:]) for line in answer.split(b"\n") if line.startswith(b"data: {")]


def text_of(answer: bytes) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events(answer))


async def only(stack: Stack, index: int) -> None:
    """Let the gateway know one replica alone, so that the next request goes there."""
    stack.set_members([stack.replicas[index].name])
    await stack.until_ready(1)


async def everyone(stack: Stack) -> None:
    stack.set_members()
    await stack.until_ready(len(stack.replicas))


async def begin(stack: Stack, prompt: str = "hello", **fields: object) -> Wire:
    """A stream on the first replica, three words into its answer; the second one is known by then."""
    await only(stack, 0)
    wire = await stack.open_chat(prompt, max_tokens=NUM_WORDS, **fields)
    await everyone(stack)
    return wire


async def made(stack: Stack, index: int, num_tokens: int) -> None:
    await until(lambda: stack.engines[index].load().generated_tokens >= num_tokens)


async def begun(stack: Stack) -> None:
    """The one request has shown its client something."""
    await until(lambda: [relay for relay in stack.inference._relays if relay._exchange.first_byte_s is not None])


async def undisturbed(tmp_path: Path) -> bytes:
    async with start_stack(tmp_path / "undisturbed") as stack, await stack.open_chat(max_tokens=NUM_WORDS) as wire:
        return (await wire.answer()).body


def without_ids(answer: bytes) -> list[Json]:
    return [{**event, "id": "", "created": 0} for event in events(answer)]


@pytest.mark.parametrize("loss", ["connection", "engine", "drain"])
async def test_a_stream_goes_on_where_it_was_and_is_what_it_would_have_been(tmp_path: Path, loss: str) -> None:
    expected = await undisturbed(tmp_path)
    async with start_stack(tmp_path, *engines()) as stack:
        async with await begin(stack, "!die" if loss == "engine" else "hello") as wire:
            if loss != "engine":
                await made(stack, 0, 5)
                if loss == "drain":
                    await stack.replicas[0].drain(0)
                await stack.replicas[0].close()
            answer = await wire.answer()
        assert without_ids(answer.body) == without_ids(expected)
        assert len({(event["id"], event["created"]) for event in events(answer.body)}) == 1
        assert answer.body.endswith(b"data: [DONE]\n\n")
        line = await stack.request_line(status=200)
        assert line["error"] is None
        assert (line["prompt_tokens"], line["output_tokens"]) == (1, NUM_WORDS), "usage is counted once"
        assert line["replica"] == stack.replicas[1].name


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_has_shown_nothing_yet_starts_again_elsewhere(tmp_path: Path, stream: bool) -> None:
    async with start_stack(tmp_path, *engines(prefill_s=0.05)) as stack:
        await only(stack, 0)
        request = asyncio.create_task(stack.client.post(CHAT, json=chat(max_tokens=3, stream=stream, n=2)))
        await until(lambda: stack.engines[0].load().running)
        await everyone(stack)
        await stack.replicas[0].close()
        answer = await request
        assert answer.status_code == 200
        assert "w2 " in answer.text
        assert (await stack.request_line(status=200))["output_tokens"] == 3


async def test_what_an_engine_that_lives_fails_at_goes_to_another_one_once(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path)
    async with start_stack(tmp_path, *engines()) as stack:
        async with await begin(stack, "!break") as wire:
            answer = await wire.answer()
        assert without_ids(answer.body) == without_ids(expected)
    breaking = [NeighbourEngine(Script(step_s=0.003)) for _ in range(3)]
    async with start_stack(tmp_path / "all", *breaking) as stack:
        async with await begin(stack, "!break") as wire:
            answer = await wire.answer()
        assert b'"code":"internal_error"' in answer.body
        assert sum(engine.num_requests for engine in breaking) == 2


async def test_a_whole_answer_that_an_engine_fails_at_comes_from_another_one(tmp_path: Path) -> None:
    async with start_stack(tmp_path, AppEngine(Recorder(b"{}", status=500)), ScriptedEngine(Script())) as stack:
        await only(stack, 0)
        broken = stack.directory.all()[0].breaker
        answer = await stack.client.post(CHAT, json=chat(max_tokens=3))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error"), "there is no other"
        assert broken.num_failures == 1
        await everyone(stack)
        answers = [await stack.client.post(CHAT, json=chat(f"{number}", max_tokens=3)) for number in range(8)]
        assert {answer.status_code for answer in answers} == {200}


async def test_a_breaker_spares_a_replica_only_while_there_is_another(tmp_path: Path) -> None:
    """Or one client's requests at which an engine fails would keep everybody from the only one."""
    spared = NeighbourEngine(Script())
    async with start_stack(tmp_path, spared, ScriptedEngine(Script()), limits={"queue_timeout_s": 0.1}) as stack:
        found = {replica.name: replica for replica in stack.directory.all()}
        bad, good = (found[replica.name] for replica in stack.replicas)

        def fail(kind: type[Exception], *said: object) -> None:
            for _ in range(NUM_FAILURES):
                bad.breaker.on_failure(time.monotonic() + 3600.0, kind(*said))

        async def served(status: int = 200) -> int:
            assert (await stack.client.post(CHAT, json=chat(max_tokens=1))).status_code == status
            return spared.num_requests

        await everyone(stack)
        fail(StreamFailed, {"message": "no memory", "cause": "engine_failed", "usage": NO_USAGE})
        assert [await served() for _ in range(8)] == [0] * 8
        good.is_silent = True
        good.refresh()
        assert await served(503) == 0, "the other is back in a moment"
        await only(stack, 0)
        assert await served() == 1
        assert bad.breaker.is_closed
        fail(ReplicaSilent, "nothing for 300 s")
        assert await served(503) == 1, "nobody would hear from it"


async def test_a_stream_that_goes_on_at_a_replica_on_probation_ends_that_with_its_first_token(tmp_path: Path) -> None:
    async with start_stack(tmp_path, *engines(step_s=0.01)) as stack, await begin(stack) as wire:
        await begun(stack)
        other = next(replica for replica in stack.directory.all() if replica.name == stack.replicas[1].name)
        other.breaker.num_failures = NUM_FAILURES
        await stack.replicas[0].close()
        await made(stack, 1, 5)
        await stack.until(lambda: other.breaker.allows(0.0))
        assert stack.engines[1].load().running, "it still answers"
        assert b"[DONE]" in (await wire.answer()).body


async def test_what_was_lost_with_a_replica_is_counted_and_nothing_else(tmp_path: Path) -> None:
    lost = metric("ballast_requests_lost_total", model=MODEL)
    async with start_stack(tmp_path, AppEngine(Recorder(b"{}", status=503)), limits={"queue_timeout_s": 0.2}) as stack:
        assert (await stack.client.post(CHAT, json=chat())).status_code == 503
        assert metric("ballast_requests_lost_total", model=MODEL) == lost, "its replica is there"
    async with start_stack(tmp_path / "dies", *engines(1, prefill_s=0.2), limits={"queue_timeout_s": 0.2}) as stack:
        request = asyncio.create_task(stack.client.post(CHAT, json=chat()))
        await until(lambda: stack.engines[0].load().running)
        await stack.replicas[0].close()
        assert (await request).status_code == 503
        assert metric("ballast_requests_lost_total", model=MODEL) == lost + 1


async def test_whatever_goes_wrong_at_its_end_a_request_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(dispatch: Dispatch, error: Exception | None) -> None:
        raise RuntimeError("a bug")

    async with start_stack(tmp_path, ScriptedEngine(Script())) as stack:
        monkeypatch.setattr(Dispatch, "settle", broken)
        ended: list[Any] = []
        monkeypatch.setattr(Dispatch, "finish", lambda *_: ended.append(1))
        with contextlib.suppress(httpx.HTTPError):
            await stack.client.post(CHAT, json=chat(max_tokens=3))
        await until(lambda: ended)
        assert ended == [1], "once, and its place in the line is free"


class NoMemory(ScriptedEngine):
    """As vLLM where a prompt's step fails: the chat's role has been told, and there is no token."""

    may_fail: asyncio.Event

    async def _answer(
        self, body: dict[str, Any], prompt: str, is_chat: bool, request: RequestContext, send: Send
    ) -> None:
        async def only_the_role(message: Message) -> None:
            if b"assistant" not in message.get("body", b"assistant"):
                await self.may_fail.wait()
                raise ScriptedFailure("no memory")
            await send(message)

        await super()._answer(body, prompt, is_chat, request, only_the_role)


async def test_a_chat_of_which_only_the_role_was_told_starts_again_elsewhere(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path)
    script = Script(step_s=0.003)
    failing = NoMemory(script)
    failing.may_fail = asyncio.Event()
    async with start_stack(tmp_path, failing, ScriptedEngine(script)) as stack:
        async with await begin(stack) as wire:
            await begun(stack)
            failing.may_fail.set()
            answer = await wire.answer()
        assert without_ids(answer.body) == without_ids(expected)
        line = await stack.request_line(status=200)
        assert (line["prompt_tokens"], line["output_tokens"]) == (1, NUM_WORDS), "usage is counted once"
        assert line["replica"] == stack.replicas[1].name


class ByState(ScriptedEngine):
    """One that draws from a generator's state."""

    draws_by_place = False


@pytest.mark.parametrize("loses", [True, False])
async def test_a_seeded_stream_goes_on_only_where_tokens_are_drawn_by_their_place(tmp_path: Path, loses: bool) -> None:
    script = Script(step_s=0.003, break_after_tokens=NEVER)
    engines = [(ByState if loses else ScriptedEngine)(script), ScriptedEngine(script)]
    async with start_stack(tmp_path, *engines) as stack, await begin(stack, seed=1) as wire:
        await made(stack, 0, 5)
        await stack.replicas[0].close()
        answer = await wire.answer()
        assert (b'"code":"engine_unavailable"' in answer.body) == loses
        assert (f"w{NUM_WORDS - 1} ".encode() in answer.body) != loses
        assert answer.body.endswith(b"data: [DONE]\n\n") != loses


async def test_a_seeded_stream_ends_where_no_replica_that_is_left_draws_by_place(tmp_path: Path) -> None:
    script = Script(step_s=0.003, break_after_tokens=NEVER)
    async with start_stack(tmp_path, ScriptedEngine(script), ByState(script)) as stack:
        async with await begin(stack, seed=1) as wire:
            await made(stack, 0, 5)
            await stack.replicas[0].close()
            answer = await wire.answer()
        assert b'"code":"engine_unavailable"' in answer.body
        assert b"[DONE]" not in answer.body
        await until(lambda: not stack.engines[1].load().running)


@pytest.mark.parametrize("fields", [{"n": 2}, {"logprobs": True}, {"presence_penalty": 0.5}])
async def test_what_cannot_honestly_go_on_ends_with_an_error(tmp_path: Path, fields: Json) -> None:
    async with start_stack(tmp_path, *engines()) as stack, await begin(stack, **fields) as wire:
        await made(stack, 0, 5)
        await stack.replicas[0].close()
        answer = await wire.answer()
        assert b'"code":"engine_unavailable"' in answer.body
        assert b"[DONE]" not in answer.body


async def test_a_stream_survives_two_losses_that_are_nobodys_death(tmp_path: Path) -> None:
    async with start_stack(tmp_path, *engines(3)) as stack, await begin(stack) as wire:
        for index in (0, 1):
            await made(stack, index, 5)
            await only(stack, index + 1)
            await stack.replicas[index].drain(0)
        assert text_of((await wire.answer()).body).split()[-1] == f"w{NUM_WORDS - 1}"


async def test_f12_a_request_that_kills_two_engines_is_never_tried_on_a_third(tmp_path: Path) -> None:
    deadly = [ScriptedEngine(Script(step_s=0.003)) for _ in range(3)]
    async with start_stack(tmp_path, *deadly) as stack:
        answer = await stack.client.post(CHAT, json=chat("!die", max_tokens=9))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "request_quarantined")
        assert [engine.dead for engine in deadly].count(True) == 2
        again = await stack.client.post(CHAT, json=chat("!die", max_tokens=9))
        assert again.status_code == 422
        assert [engine.dead for engine in deadly].count(True) == 2
        assert (await stack.client.post(CHAT, json=chat("something else", max_tokens=2))).status_code == 200
        assert any('"event":"quarantined"' in line for line in stack.logs.lines)


async def test_f12_a_request_whose_answer_cannot_go_on_kills_two_engines_at_most(tmp_path: Path) -> None:
    """Its streams break after the first words, and its client tries again and again."""
    deadly = [ScriptedEngine(Script(step_s=0.003, break_after_tokens=2)) for _ in range(3)]
    async with start_stack(tmp_path, *deadly) as stack:
        for _ in range(2):
            async with await stack.open_chat("!die", max_tokens=9, logprobs=True) as wire:
                assert b'"error"' in (await wire.answer()).body
        again = await stack.client.post(CHAT, json=chat("!die", max_tokens=9, logprobs=True, stream=True))
        assert (again.status_code, again.json()["error"]["code"]) == (422, "request_quarantined")
        assert [engine.dead for engine in deadly].count(True) == 2


async def test_what_a_lost_replica_had_sent_is_counted(tmp_path: Path) -> None:
    """Nobody takes over, and nobody says what it has cost: the client has had its tokens all the same."""
    async with start_stack(tmp_path, engines()[0]) as stack, await stack.open_chat(max_tokens=NUM_WORDS) as wire:
        await made(stack, 0, 5)
        await stack.replicas[0].close()
        told = [event for event in events((await wire.answer()).body) if "choices" in event]
        num_words = len("".join(event["choices"][0]["delta"].get("content", "") for event in told).split())
        assert num_words
        assert (await stack.request_line(status=200))["output_tokens"] == num_words


async def test_f22_retries_stay_within_their_budget(tmp_path: Path) -> None:
    limits = {"retry_budget_floor": 2, "retry_budget_ratio": 0.0}
    async with start_stack(tmp_path, *engines(prefill_s=0.05), limits=limits) as stack:
        await only(stack, 0)
        requests = [asyncio.create_task(stack.client.post(CHAT, json=chat(f"{i}", max_tokens=2))) for i in range(5)]
        await until(lambda: stack.engines[0].load().running == 5)
        await everyone(stack)
        await stack.replicas[0].close()
        codes = sorted([(await request).status_code for request in requests])
        assert codes == [200, 200, 503, 503, 503]


async def test_what_has_nowhere_to_go_takes_nothing_from_the_budget_of_what_has(tmp_path: Path) -> None:
    limits = {"retry_budget_floor": 1, "retry_budget_ratio": 0.0}
    async with start_stack(tmp_path, *engines(3), limits=limits) as stack:
        await only(stack, 0)
        async with await stack.open_chat("one", max_tokens=NUM_WORDS) as stranded:
            await begun(stack)
            await stack.replicas[0].close()
            assert events((await stranded.answer()).body)[-1].get("error")
        await only(stack, 1)
        async with await stack.open_chat("two", max_tokens=NUM_WORDS) as wire:
            stack.set_members([stack.replicas[1].name, stack.replicas[2].name])
            await stack.until_ready(2)
            await begun(stack)
            await stack.replicas[1].close()
            assert "error" not in events((await wire.answer()).body)[-1]


async def test_f36_a_request_that_has_moved_has_the_whole_time_again(tmp_path: Path) -> None:
    """Its former replica is silent to the last: it does not even confirm that the request was dropped."""

    async def deaf(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    limits = {"first_byte_timeout_s": 0.3}
    async with start_stack(tmp_path, AppEngine(deaf), ScriptedEngine(Script(prefill_s=0.2)), limits=limits) as stack:
        await only(stack, 0)
        request = asyncio.create_task(stack.client.post(CHAT, json=chat(max_tokens=2)))
        await until(lambda: stack.inference.num_in_flight)
        await everyone(stack)
        assert (await request).status_code == 200


async def test_f36_what_a_silent_replica_says_after_all_is_no_part_of_the_answer(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path)
    async with start_stack(tmp_path, *engines(), limits={"inter_chunk_timeout_s": 5.0}) as stack:
        wire = await begin(stack)
        await made(stack, 0, 3)
        [silent] = next(replica for replica in stack.directory.all() if replica.name == "r0").link.streams.values()
        await until(lambda: silent.sink is not None)
        stack.tick(6.0)
        await until(lambda: stack.engines[1].load().running)
        silent.on_body(b'data: {"stale": 1}\n\n')
        assert without_ids((await wire.answer()).body) == without_ids(expected)
        await wire.close()


async def test_f36_a_replica_that_stays_silent_loses_the_request_to_another(tmp_path: Path) -> None:
    async with start_stack(tmp_path, *engines(), limits={"first_byte_timeout_s": 5.0}) as stack:
        await only(stack, 0)
        request = asyncio.create_task(stack.client.post(CHAT, json=chat("!stall", max_tokens=2)))
        await until(lambda: stack.engines[0].load().running)
        await everyone(stack)
        stack.tick(6.0)
        await until(lambda: stack.engines[1].load().running)
        await until(lambda: stack.engines[0].aborted == ["!stall"])
        stack.tick(12.0)
        assert (await request).status_code == 504
