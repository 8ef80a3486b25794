"""An answer on its way to a client: broken streams, silence, slow readers, clients that leave; time is set by hand."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from serving.engine.scripted import Script, ScriptedEngine
from serving.gateway import dispatch
from serving.gateway.exchange import Exchange
from serving.gateway.relay import translate_error
from serving.protocol.asgi import AsgiApp, Message, Receive, Scope, Send
from serving.protocol.openai import Dialect
from serving.protocol.sse import KEEP_ALIVE, EventDecoder
from serving.router.breaker import NUM_FAILURES
from tests.support.dialects import BODIES, MESSAGES
from tests.support.engines import AppEngine, Events, Flood, Recorder, start
from tests.support.stack import CHAT, MODEL, Stack, chat, chat_bytes, start_stack, until
from tests.support.wire import Wire

FIRST_EVENT = b'data: {"first": 1}\n\n'


async def tick_until(stack: Stack, seconds_later: float, condition: Callable[[], object]) -> None:
    """Beat, always at the same later time, until ``condition`` holds."""

    def beaten() -> object:
        stack.tick(seconds_later)
        return condition()

    await until(beaten)


async def events_of(wire: Wire) -> list[bytes]:
    """The data of every event up to a proper end of the response."""
    decoder, events = EventDecoder(), []
    async with asyncio.timeout(5):
        async for chunk in wire.chunks():
            events += decoder.feed(chunk)
    return events


async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
    """An engine's app that fails after its first event."""
    await start(send)
    await send({"type": "http.response.body", "body": FIRST_EVENT, "more_body": True})
    raise RuntimeError("broken")


# ------------------------------------------------------------------------------------------------------ broken streams


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_breaks_ends_with_an_error_event_of_its_dialect(tmp_path: Path, path: str) -> None:
    async with start_stack(tmp_path, AppEngine(breaks)) as stack:
        response = await stack.client.post(path, json=BODIES[path])
        first, last = EventDecoder().feed(response.content)
        assert (response.status_code, first) == (200, b'{"first": 1}')
        assert json.loads(last)["error"]["message"] == "the engine failed while serving this request"
        if path == "/v1/messages":
            assert json.loads(last)["type"] == "error"
            assert b"event: error\n" in response.content
        else:
            assert json.loads(last)["error"]["code"] == "internal_error"
        assert b"[DONE]" not in response.content
        assert b"finish_reason" not in response.content
        assert (await stack.request_line(route=path))["error"] == "internal_error"


@pytest.mark.parametrize("path", BODIES)
async def test_a_replica_that_dies_mid_stream_is_told_within_a_second(tmp_path: Path, path: str) -> None:
    async with start_stack(tmp_path, AppEngine(Events([FIRST_EVENT], holds=True))) as stack, await stack.wire() as wire:
        await wire.post(path, json.dumps(BODIES[path]).encode())
        await wire.read_until(FIRST_EVENT)
        died_s = time.monotonic()
        await stack.replicas[0].close()
        rest = await wire.read_until(b"0\r\n\r\n")
        assert time.monotonic() - died_s < 1
        assert b"is gone; the answer is incomplete" in rest
        assert b"[DONE]" not in rest
        assert b"finish_reason" not in rest


@pytest.mark.parametrize("stream", [False, True])
async def test_when_no_replica_comes_back_a_request_that_lost_its_own_is_a_503(tmp_path: Path, stream: bool) -> None:
    engine = ScriptedEngine(Script())
    async with start_stack(tmp_path, engine, limits={"queue_timeout_s": 0.1}) as stack:
        request = asyncio.create_task(stack.client.post(CHAT, json=chat("!stall", stream=stream)))
        await stack.until(lambda: engine.load().running == 1)
        await stack.replicas[-1].close()
        response = await request
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
        assert response.headers["retry-after"] == "1"


async def test_a_whole_answer_that_breaks_is_an_error_and_no_half_answer(stack: Stack) -> None:
    response = await stack.client.post(CHAT, json=chat("!break"))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


@asynccontextmanager
async def broken_stack(folder: Path) -> AsyncIterator[tuple[Stack, httpx.AsyncClient]]:
    async with start_stack(folder, AppEngine(breaks)) as stack, httpx.AsyncClient(trust_env=False) as client:
        yield stack, client


async def test_the_official_openai_client_raises_on_a_broken_stream(tmp_path: Path) -> None:
    async with broken_stack(tmp_path) as (stack, http):
        client = openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, http_client=http)
        messages: Any = MESSAGES
        streams: list[Any] = [
            await client.chat.completions.create(model=MODEL, messages=messages, stream=True),
            await client.completions.create(model=MODEL, prompt="hi", stream=True),
            await client.responses.create(model=MODEL, input="hi", stream=True),
        ]
        for stream in streams:
            with pytest.raises(openai.APIError) as caught:
                async for _ in stream:
                    pass
            assert (caught.value.type, caught.value.code) == ("server_error", "internal_error")


async def test_the_official_anthropic_client_raises_on_a_broken_stream(tmp_path: Path) -> None:
    async with start_stack(tmp_path, AppEngine(breaks)) as stack:
        client = anthropic.AsyncAnthropic(base_url=stack.url, api_key="none", max_retries=0)
        messages: Any = MESSAGES
        stream = await client.messages.create(model=MODEL, max_tokens=16, messages=messages, stream=True)
        with pytest.raises(anthropic.APIError):
            async for _ in stream:
                pass
        await client.close()


# ------------------------------------------------------------------------------------------------------ engine answers


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [(400, 400, None), (422, 400, None), (404, 404, "model_not_found"), (500, 500, "internal_error"),
     (503, 503, "engine_unavailable")],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_answer_of_the_engine_is_put_into_our_shape(
    stack: Stack, status: int, expected: int, code: str | None, stream: bool
) -> None:
    response = await stack.client.post(CHAT, json=chat(f"!status {status}", stream=stream))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (expected, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert ("scripted" in error["message"]) is (status < 500), "the engine's words about itself stay inside"


@pytest.mark.parametrize("body", [b"", b"oops", b"[]", b"{}", b'"x"', b'{"detail": "d"}', b'{"error": "Unauthorized"}'])
async def test_any_error_body_of_the_engine_can_be_translated(tmp_path: Path, body: bytes) -> None:
    async with start_stack(tmp_path, AppEngine(Recorder(body, status=418))) as stack:
        response = await stack.client.post(CHAT, json=chat())
        assert response.status_code == 400
        assert isinstance(response.json()["error"]["message"], str)


def test_an_overlong_prompt_gets_the_code_that_clients_know() -> None:
    exchange = Exchange("req-1", "POST", CHAT, Dialect.OPENAI, 0.0)
    body = b'{"error": {"message": "This model\'s maximum context length is 10 tokens", "param": "input_tokens"}}'
    error = translate_error(400, body, exchange)
    assert (error.code, error.param) == ("context_length_exceeded", "input_tokens")


# ------------------------------------------------------------------------------------------------------------- silence


async def test_keep_alive_comments_come_while_a_stream_is_silent(stack: Stack) -> None:
    async with await stack.open_chat("!stall") as wire:
        reading = asyncio.create_task(wire.read_until(KEEP_ALIVE))
        await tick_until(stack, 11, reading.done)
        assert b"200 OK" in await reading
        again = asyncio.create_task(wire.read_until(KEEP_ALIVE))
        stack.tick(12)
        await asyncio.sleep(0)
        assert not again.done(), "the interval has not passed again"
        stack.tick(22)
        await again


async def test_keep_alive_comments_come_between_two_chunks_too(tmp_path: Path) -> None:
    app = Events([FIRST_EVENT], holds=True)
    async with start_stack(tmp_path, AppEngine(app)) as stack, await stack.open_chat() as wire:
        await wire.read_until(FIRST_EVENT)
        stack.tick(9)
        stack.tick(11)
        assert KEEP_ALIVE in await wire.read_until(KEEP_ALIVE)
        app.release.set()
        await wire.read_until(b"0\r\n\r\n")


async def test_the_official_client_reads_past_keep_alive_comments(tmp_path: Path) -> None:
    engine = ScriptedEngine(Script(prefill_s=0.05, step_s=0.005))
    async with start_stack(tmp_path, engine) as stack, httpx.AsyncClient(trust_env=False) as http:
        client = openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, http_client=http)
        messages: Any = MESSAGES
        opening = asyncio.create_task(
            client.chat.completions.create(model=MODEL, messages=messages, stream=True, max_tokens=3)
        )
        await tick_until(stack, 11, opening.done)
        words = [chunk.choices[0].delta.content async for chunk in await opening]
        assert words == ["", "w0 ", "w1 ", "w2 ", None]


async def test_a_whole_answer_gets_no_comments(stack: Stack) -> None:
    request = asyncio.create_task(stack.client.post(CHAT, json=chat("!stall")))
    await stack.until(lambda: stack.engines[0].load().running)
    stack.tick(11)
    await tick_until(stack, 301, request.done)
    assert (await request).status_code == 504


@pytest.mark.parametrize("stream", [False, True])
async def test_no_first_byte_in_time_is_a_504_and_the_engine_aborts(stack: Stack, stream: bool) -> None:
    request = asyncio.create_task(stack.client.post(CHAT, json=chat("!stall", stream=stream)))
    await stack.until(lambda: stack.engines[0].load().running)
    await tick_until(stack, 301, request.done)
    response = await request
    assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
    assert response.headers["x-should-retry"] == "false"
    assert stack.engines[0].aborted == ["!stall"]


async def test_no_first_byte_in_time_after_a_comment_is_an_error_event(stack: Stack) -> None:
    async with await stack.open_chat("!stall") as wire:
        reading = asyncio.create_task(wire.read_until(KEEP_ALIVE))
        await tick_until(stack, 11, reading.done)
        stack.tick(301)
        assert b"upstream_timeout" in await wire.read_until(b"0\r\n\r\n")


async def test_no_next_chunk_in_time_is_an_error_event_and_the_engine_aborts(tmp_path: Path) -> None:
    app = Events([FIRST_EVENT], holds=True)
    async with start_stack(tmp_path, AppEngine(app)) as stack, await stack.open_chat() as wire:
        await wire.read_until(FIRST_EVENT)
        stack.tick(59)
        assert stack.inference.num_in_flight == 1
        stack.tick(61)
        assert b'"code":"upstream_timeout"' in await wire.read_until(b"0\r\n\r\n")
        await stack.until(app.was_dropped.is_set)
        assert (await stack.request_line(status=200))["error"] == "upstream_timeout"


async def test_a_replica_that_makes_tokens_and_sends_none_is_not_silent(tmp_path: Path) -> None:
    app = Events([FIRST_EVENT], holds=True)
    async with start_stack(tmp_path, AppEngine(app)) as stack, await stack.open_chat() as wire:
        await wire.read_until(FIRST_EVENT)
        [relay] = stack.inference._relays
        relay._stream.progressed_s = time.monotonic() + 59
        stack.tick(61)
        app.release.set()
        assert b"upstream_timeout" not in await wire.read_until(b"0\r\n\r\n")


async def test_what_the_engine_refuses_in_a_stream_is_the_clients_mistake(tmp_path: Path) -> None:
    """vLLM checks some fields when generation begins, and its stream has begun by then."""
    refusal = b'data: {"error": {"message": "token id 50256 is out of vocabulary", "code": 400}}\n\n'
    async with start_stack(tmp_path, AppEngine(Events([refusal])), AppEngine(Events([refusal]))) as stack:
        for _ in range(2 * NUM_FAILURES):
            answer = await stack.client.post(CHAT, json=chat(stream=True))
            assert answer.status_code == 400
            assert "out of vocabulary" in answer.json()["error"]["message"]
        assert all(replica.breaker.num_failures == 0 for replica in stack.directory.all())


async def test_an_answer_takes_no_longer_than_the_limit_in_all(tmp_path: Path) -> None:
    app = Events([FIRST_EVENT], holds=True)
    limits = {"max_request_s": 50.0}
    async with start_stack(tmp_path, AppEngine(app), limits=limits) as stack, await stack.open_chat() as wire:
        await wire.read_until(FIRST_EVENT)
        stack.tick(51)
        assert b"took longer than 50 s" in await wire.read_until(b"0\r\n\r\n")
        await stack.until(app.was_dropped.is_set)


# --------------------------------------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_is_aborted(stack: Stack, stream: bool) -> None:
    wire = await stack.wire()
    await wire.post(CHAT, json.dumps(chat("!stall one two", stream=stream)).encode())
    await stack.until(lambda: stack.engines[0].load().running)
    async with asyncio.timeout(1):
        wire.abort()
        await stack.until(lambda: stack.engines[0].aborted)
    line = await stack.request_line(status=499)
    assert (line["prompt_tokens"], line["output_tokens"]) == (3, 0)
    assert stack.inference.num_in_flight == 0


async def test_a_client_that_leaves_mid_stream_is_aborted_and_pays_for_what_was_made(tmp_path: Path) -> None:
    engine = ScriptedEngine(Script(step_s=0.002))
    async with start_stack(tmp_path, engine) as stack:
        wire = await stack.open_chat("a b", max_tokens=4000)
        await wire.read_until(b"w5 ")
        async with asyncio.timeout(1):
            wire.abort()
            await stack.until(lambda: engine.aborted)
        line = await stack.request_line(status=499)
        assert line["prompt_tokens"] == 2
        assert 6 <= line["output_tokens"] < 4000
        assert engine.load().running == 0


async def test_a_client_that_ends_its_side_properly_has_left_too(tmp_path: Path) -> None:
    engine = ScriptedEngine(Script(step_s=0.002))
    async with start_stack(tmp_path, engine) as stack:
        wire = await stack.open_chat(max_tokens=4000)
        await wire.read_until(b"w1 ")
        await wire.close()
        await stack.until(lambda: engine.aborted)


async def test_a_client_that_leaves_while_its_request_waits_in_the_engine_frees_its_place(tmp_path: Path) -> None:
    engine = ScriptedEngine(Script(max_num_seqs=1))
    async with start_stack(tmp_path, engine) as stack, await stack.open_chat("!stall"):
        await stack.until(lambda: engine.load().running)
        waiting = await stack.open_chat("waiting")
        await stack.until(lambda: engine.load().waiting)
        waiting.abort()
        await stack.until(lambda: engine.load().waiting == 0)
        assert engine.aborted == ["waiting"]
        assert (await stack.request_line(status=499))["output_tokens"] == 0


# -------------------------------------------------------------------------------------------------------- slow readers

CHUNK = b"data: " + b"x" * 16_000 + b"\n\n"
SMALL_BUFFERS = {"stream_buffer_bytes": 65_536}
#: Our buffer, the HTTP server's, the kernel's two, and what is under way on the replica's connection.
MOST_HELD_BYTES = 768 * 1024


async def stuck(app: AsgiApp, flood: Flood) -> int:
    """How far the flood has come when it no longer moves."""
    last, unchanged = -1, 0
    while unchanged < 50:
        await asyncio.sleep(0.001)
        unchanged = unchanged + 1 if flood.sent_bytes and flood.sent_bytes[0] == last else 0
        last = flood.sent_bytes[0] if flood.sent_bytes else -1
    return last


async def test_a_slow_reader_pauses_its_engine_and_gets_everything_when_it_reads(tmp_path: Path) -> None:
    flood = Flood(CHUNK, max_chunks=300)
    async with start_stack(tmp_path, AppEngine(flood), limits=SMALL_BUFFERS) as stack:
        wire = await stack.wire(receive_buffer_bytes=4096, limit_bytes=1024)
        await wire.post(CHAT, json.dumps(chat(stream=True)).encode())
        assert await stuck(flood, flood) < MOST_HELD_BYTES
        await wire.read_head()
        assert sum([len(chunk) async for chunk in wire.chunks()]) == 300 * len(CHUNK)
        await wire.close()
        assert (await stack.request_line(status=200))["error"] is None


async def test_what_a_slow_reader_makes_late_is_not_our_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_WRITE_S", 0.7)
    flood = Flood(CHUNK, max_chunks=300)
    async with start_stack(tmp_path, AppEngine(flood), limits=SMALL_BUFFERS) as stack:
        wire = await stack.wire(receive_buffer_bytes=4096, limit_bytes=1024)
        await wire.post(CHAT, json.dumps(chat(stream=True)).encode())
        await stuck(flood, flood)
        await asyncio.sleep(1.0)
        await wire.read_head()
        assert sum([len(chunk) async for chunk in wire.chunks()]) == 300 * len(CHUNK)
        await wire.close()
        await stack.request_line(status=200)
        demand = stack.inference._dispatcher.routes[MODEL].demand
        assert (demand.num_met, demand.num_missed) == (1, 0)


async def test_a_slow_reader_has_no_more_time_in_all_than_others(tmp_path: Path) -> None:
    flood = Flood(CHUNK, max_chunks=10_000)
    limits = SMALL_BUFFERS | {"max_request_s": 50.0}
    async with start_stack(tmp_path, AppEngine(flood), limits=limits) as stack:
        wire = await stack.wire(receive_buffer_bytes=4096, limit_bytes=1024)
        await wire.post(CHAT, json.dumps(chat(stream=True)).encode())
        await stuck(flood, flood)
        stack.tick(49)
        assert stack.inference.num_in_flight == 1
        stack.tick(51)
        await stack.until(lambda: flood.num_dropped == 1)
        assert (await stack.request_line(status=499))["error"] == "slow_reader"
        wire.abort()


async def test_a_slow_reader_is_cut_after_its_time_and_not_before(tmp_path: Path) -> None:
    flood = Flood(CHUNK, max_chunks=10_000)
    async with start_stack(tmp_path, AppEngine(flood), limits=SMALL_BUFFERS) as stack:
        wire = await stack.wire(receive_buffer_bytes=4096, limit_bytes=1024)
        await wire.post(CHAT, json.dumps(chat(stream=True)).encode())
        await stuck(flood, flood)
        stack.tick(59)
        assert stack.inference.num_in_flight == 1
        stack.tick(61)
        await stack.until(lambda: flood.num_dropped == 1)
        line = await stack.request_line(status=499)
        assert line["error"] == "slow_reader"
        assert stack.inference.num_in_flight == 0
        wire.abort()


async def test_a_client_that_does_not_take_the_end_of_its_answer_is_cut_after_its_time(tmp_path: Path) -> None:
    body, is_last = [chat_bytes(stream=True)], asyncio.Event()

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        return await asyncio.Event().wait() or {}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            is_last.set()
            await asyncio.Event().wait()  # as uvicorn does while its client reads nothing

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"content-type", b"application/json")]}
    async with start_stack(tmp_path, AppEngine(Flood(CHUNK, max_chunks=3))) as stack:
        serving = asyncio.create_task(stack.gateway(scope, receive, send))  # type: ignore[arg-type]
        await is_last.wait()
        stack.tick(59)
        assert stack.inference.num_in_flight == 1
        stack.tick(61)
        await stack.until(serving.done)
        assert stack.inference.num_in_flight == 0


async def test_a_gateway_that_stood_still_does_not_take_its_replicas_for_silent(tmp_path: Path) -> None:
    app = Events([FIRST_EVENT], holds=True)
    async with start_stack(tmp_path, AppEngine(app)) as stack, await stack.open_chat() as wire:
        await wire.read_until(FIRST_EVENT)
        stack.inference.tick(time.monotonic() + 900.0, stood_still_s=890.0)
        app.release.set()
        assert b"error" not in await wire.read_until(b"0\r\n\r\n")
