"""The scripted engine: same request, same answer; faults on order."""

import asyncio
import json

import pytest

from serving.engine.base import RequestContext, current_request
from serving.engine.scripted import Script, ScriptedEngine, ScriptedFailure
from serving.protocol.asgi import Message
from tests.support.stack import CHAT, chat, until


class Call:
    """One request to an engine's app, without a server."""

    def __init__(self, engine: ScriptedEngine, body: dict[str, object], path: str = CHAT) -> None:
        self.sent: list[Message] = []
        self.disconnect = asyncio.Event()
        self.meter = RequestContext(model_name="as-asked")
        self._body: bytes | None = json.dumps(body).encode()
        token = current_request.set(self.meter)
        self.task = asyncio.create_task(engine.app({"type": "http", "path": path}, self._receive, self._send))  # type: ignore[arg-type]
        current_request.reset(token)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def text(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


async def test_tokens_are_numbered_words_and_counted() -> None:
    call = Call(ScriptedEngine(Script()), chat("one two three", max_tokens=4))
    await call.task
    answer = json.loads(call.text)
    assert answer["choices"][0]["message"]["content"] == "w0 w1 w2 w3 "
    assert answer["model"] == "as-asked"
    assert call.meter.usage == {
        "prompt_tokens": 3, "cached_tokens": 0, "output_tokens": 4, "finish_reason": "length",
    }  # fmt: skip


async def test_a_stream_ends_with_a_finish_reason_and_done() -> None:
    call = Call(ScriptedEngine(Script()), chat(max_tokens=2, stream=True))
    await call.task
    events = call.text.split(b"\n\n")
    found = [b'"role"' in events[0], b"w0" in events[1], b"w1" in events[2], b'"length"' in events[3]]
    assert found == [True, True, True, True]
    assert events[4:] == [b"data: [DONE]", b""]


async def test_completions_carry_text() -> None:
    call = Call(ScriptedEngine(Script()), {"model": "m", "prompt": "a b", "max_tokens": 1}, "/v1/completions")
    await call.task
    assert json.loads(call.text)["choices"][0]["text"] == "w0 "


async def test_other_paths_are_404() -> None:
    call = Call(ScriptedEngine(Script()), {}, "/metrics")
    await call.task
    assert call.status == 404


async def test_an_order_for_a_status_is_obeyed() -> None:
    call = Call(ScriptedEngine(Script()), chat("!status 503 please"))
    await call.task
    assert call.status == 503


async def test_break_fails_after_the_scripted_number_of_tokens() -> None:
    call = Call(ScriptedEngine(Script(break_after_tokens=2)), chat("!break", stream=True))
    with pytest.raises(ScriptedFailure):
        await call.task
    assert call.meter.output_tokens == 2


async def test_die_kills_the_engine_for_good() -> None:
    engine = ScriptedEngine(Script())
    with pytest.raises(ScriptedFailure):
        await Call(engine, chat("!die")).task
    assert engine.dead


async def test_a_disconnect_aborts_and_frees_the_slot() -> None:
    engine = ScriptedEngine(Script(max_num_seqs=1))
    stalled, waiting = Call(engine, chat("!stall")), Call(engine, chat(max_tokens=1))
    await until(lambda: (engine.load().running, engine.load().waiting) == (1, 1))
    stalled.disconnect.set()
    await asyncio.gather(stalled.task, waiting.task)
    assert engine.aborted == ["!stall"]
    assert engine.load().running == 0


async def test_a_cancelled_request_leaves_nothing_running() -> None:
    engine = ScriptedEngine(Script())
    call = Call(engine, chat("!stall"))
    await until(lambda: engine.load().running == 1)
    call.task.cancel()
    await until(lambda: engine.load().running == 0)
    assert engine.aborted == ["!stall"]


async def test_iterations_and_tokens_only_grow() -> None:
    engine = ScriptedEngine(Script())
    await Call(engine, chat(max_tokens=5)).task
    load = engine.load()
    assert (load.iterations, load.generated_tokens, load.running, load.waiting) == (5, 5, 0, 0)
