"""A deterministic engine with no model: scripted latencies and faults behind the OpenAI API. For tests, demos and
load tests.

It answers ``/v1/chat/completions`` and ``/v1/completions`` with numbered words, one per token, and nothing else. A
prompt may carry one order for the engine, so that a test can choose a fault per request: ``!stall`` (never answers),
``!die`` (the engine dies), ``!break`` (fails mid-stream), ``!status 500`` (an error answer).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from serving.engine.base import EngineLoad, RequestContext, current_request
from serving.protocol import sse
from serving.protocol.asgi import AsgiApp, Receive, Scope, Send
from serving.replica.options import ReplicaOptions

_PROMPT_TOKEN_S = 1e-6
"""The length of a prompt makes no difference to it."""


class ScriptedFailure(RuntimeError):
    """What an order in a prompt asked for."""


@dataclass(frozen=True, slots=True)
class Script:
    """How the engine behaves. ``step_s`` is one token's time, ``prefill_s`` the first one's, ``start_s`` the cold
    start.

    ``max_num_seqs`` requests run at once; more wait. ``break_after_tokens`` is when ``!break`` and ``!die`` strike.
    """

    start_s: float = 0.0
    prefill_s: float = 0.0
    step_s: float = 0.0
    default_output_tokens: int = 16
    max_num_seqs: int = 256
    max_model_len: int = 4096
    break_after_tokens: int = 2


class ScriptedEngine:
    """``Engine`` by script. Words of the prompt count as its tokens."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._slots = asyncio.Semaphore(script.max_num_seqs)
        self._running = self._waiting = self._generated = self._iterations = 0
        self._dead = asyncio.Event()
        self.aborted: list[str] = []

    async def start(self) -> None:
        await asyncio.sleep(self._script.start_s)

    @property
    def app(self) -> AsgiApp:
        return self._serve

    @property
    def dead(self) -> bool:
        return self._dead.is_set()

    @property
    def draws_by_place(self) -> bool:
        return True

    @property
    def max_model_len(self) -> int:
        return self._script.max_model_len

    def load(self) -> EngineLoad:
        script = self._script
        return EngineLoad(
            running=self._running,
            waiting=self._waiting,
            kv_cache_usage=min(1.0, self._running / script.max_num_seqs),
            kv_tokens=float(self._running * script.max_model_len),
            generated_tokens=self._generated,
            iterations=self._iterations,
            unfinished=self._running + self._waiting,
            speed=(script.step_s, 0.0, 0.0, _PROMPT_TOKEN_S),
            max_num_seqs=script.max_num_seqs,
            kv_capacity_tokens=script.max_num_seqs * script.max_model_len,
        )

    async def answer(self) -> None:
        """At once: the engine is this process."""

    async def stop(self) -> None:
        self._dead.set()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in ("/v1/chat/completions", "/v1/completions"):
            await _respond(
                send, 404, {"error": {"message": "not scripted", "type": "Scripted", "param": None, "code": 404}}
            )
            return
        body = orjson.loads((await receive())["body"])
        is_chat = scope["path"] == "/v1/chat/completions"
        prompt = _prompt_text(body)
        request = current_request.get(None) or RequestContext()
        request.prompt_tokens += len(prompt.split())
        if "!status " in prompt:
            status = int(prompt.split("!status ")[1].split()[0])
            await _respond(
                send,
                status,
                {"error": {"message": f"scripted {status}", "type": "Scripted", "param": None, "code": status}},
            )
            return
        answer = asyncio.ensure_future(self._answer(body, prompt, is_chat, request, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            gone.cancel()
            if not answer.done():
                self.aborted.append(prompt)
                answer.cancel()

    async def _answer(
        self, body: dict[str, Any], prompt: str, is_chat: bool, request: RequestContext, send: Send
    ) -> None:
        num_tokens = body.get("max_completion_tokens") or body.get("max_tokens") or self._script.default_output_tokens
        envelope = {
            "id": "scripted",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": request.created or int(time.time()),
            "model": request.model_name or body["model"],
        }
        if not body.get("stream"):
            words = [word async for word in self._words(prompt, num_tokens, request)]
            text = "".join(words)
            choice = (
                {"index": 0, "message": {"role": "assistant", "content": text}}
                if is_chat
                else {"index": 0, "text": text}
            )
            usage = {"prompt_tokens": request.prompt_tokens, "completion_tokens": num_tokens,
                     "total_tokens": request.prompt_tokens + num_tokens}  # fmt: skip
            await _respond(send, 200, envelope | {"choices": [choice | {"finish_reason": "length"}], "usage": usage})
            return
        await _start(send, 200, b"text/event-stream; charset=utf-8")
        if is_chat:
            envelope["object"] = "chat.completion.chunk"
        is_role_due = is_chat and not request.resume
        async for word in self._words(prompt, num_tokens, request):
            if is_role_due:
                is_role_due = False
                role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                await _send_body(send, sse.event(envelope | {"choices": [role]}))
            delta = {"index": 0, "delta": {"content": word}} if is_chat else {"index": 0, "text": word}
            await _send_body(send, sse.event(envelope | {"choices": [delta | {"finish_reason": None}]}))
        last = {"index": 0, "delta": {}} if is_chat else {"index": 0, "text": ""}
        await _send_body(send, sse.event(envelope | {"choices": [last | {"finish_reason": "length"}]}))
        await _send_body(send, sse.DONE, more=False)

    async def _words(self, prompt: str, num_tokens: int, request: RequestContext) -> AsyncIterator[str]:
        script = self._script
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            if "!stall" in prompt:
                await asyncio.Event().wait()
            request.output_tokens += len(request.resume)
            for index in range(len(request.resume), num_tokens):
                await asyncio.sleep(script.step_s if index else script.prefill_s)
                if index == script.break_after_tokens:
                    self._strike(prompt)
                self._iterations += 1
                self._generated += 1
                request.output_tokens += 1
                if request.continuable:
                    request.unsent_ids.append(index)
                yield f"w{index} "
            request.finish_reason = "length"
        finally:
            self._running -= 1
            self._slots.release()

    def _strike(self, prompt: str) -> None:
        if "!die" in prompt:
            self._dead.set()
        if "!break" in prompt or self._dead.is_set():
            raise ScriptedFailure("the scripted engine failed")


def build(options: ReplicaOptions) -> ScriptedEngine:
    return ScriptedEngine(Script(**options.engine_args))


def _prompt_text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return " ".join(str(message.get("content")) for message in body["messages"])
    return str(body.get("prompt", ""))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})


async def _send_body(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _respond(send: Send, status: int, value: object) -> None:
    await _start(send, status, b"application/json")
    await _send_body(send, orjson.dumps(value), more=False)
