"""An answer on its way from a replica to a client: bytes that need no change are passed on unread.

What is read: the status line, an error answer (a few hundred bytes, put into our shape), nothing else. Tokens are
counted where they are made and arrive with the stream's end.

When a replica is lost, the request goes to another one: from its beginning while the client has no token of the answer,
from the tokens so far where the replica named them, else the answer ends with an error.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

import orjson

from serving.errors import (
    ApiError,
    BadRequest,
    ContextLengthExceeded,
    EngineUnavailable,
    InternalError,
    ModelNotFound,
    Overloaded,
    RateLimited,
    ReplicaLost,
    ReplicaSilent,
    UpstreamTimeout,
)
from serving.gateway.dispatch import Dispatch, disconnect, is_failure, is_refusal
from serving.gateway.exchange import ClientGone, Exchange
from serving.protocol import sse
from serving.protocol.asgi import Receive, Send
from serving.protocol.frames import ResponseHead
from serving.protocol.openai import error_event
from serving.router.link import ReplicaStream, StreamFailed
from serving.telemetry import metrics

logger = logging.getLogger("ballast.gateway")

RETRY_AFTER_LOST_S = 1.0
#: How long a dropped request's replica has to say what it cost.
FINISH_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a relay waits for what, in seconds."""

    keep_alive_s: float
    first_byte_timeout_s: float
    inter_chunk_timeout_s: float
    slow_reader_timeout_s: float
    max_request_s: float


class Relay:
    """Carries one answer. ``run`` does the carrying; ``tick`` is called about twice a second for what depends on
    time. ``stream`` is the first that ``dispatch`` opened.
    """

    def __init__(
        self,
        exchange: Exchange,
        dispatch: Dispatch,
        stream: ReplicaStream,
        receive: Receive,
        send: Send,
        timing: Timing,
    ) -> None:
        self._exchange = exchange
        self._dispatch = dispatch
        self._stream = stream
        self._receive = receive
        self._send = send
        self._timing = timing
        self._task = asyncio.current_task()
        self._content_type = b""
        self._idle_since_s = self._kept_alive_s = time.monotonic()
        self._blocked_since_s: float | None = None
        self._is_continuable = False
        self._is_answering = self._was_lost = self._is_ended = False
        self._sent_ids: list[int] = []
        self._first_body = b""
        self._has_role_twice = False
        self._keep_alive_task: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Relay until the answer ends. Raises ``ApiError`` only while nothing has been sent."""
        ended_by: Exception | None = None
        try:
            while not await self._is_relayed():
                pass
        except (ReplicaLost, StreamFailed, ApiError) as error:
            ended_by = error
            await self._end_with(error)
        except BaseException as error:
            ended_by = ClientGone(str(error))
            raise
        finally:
            await self._finish(ended_by)

    async def _finish(self, ended_by: Exception | None) -> None:
        """Let go of everything, whatever goes wrong with one of it."""
        self._stream.sink = None
        ended_s = time.monotonic()
        try:
            self._dispatch.settle(ended_by)
        finally:
            for task in (self._keep_alive_task, self._watcher):
                if task is not None:
                    task.cancel()
            # A cancelled task holds the frame that holds this relay: let go, or only the garbage collector can.
            self._keep_alive_task = self._watcher = self._task = None
            try:
                usage = await self._stream.finish(FINISH_TIMEOUT_S)
                # A replica that took over counts what was sent before it with its first token, a lost one not at all.
                self._exchange.usage = {**usage, "output_tokens": max(usage["output_tokens"], len(self._sent_ids))}
            finally:
                self._dispatch.finish(ended_by, ended_s)

    async def _is_relayed(self) -> bool:
        """Relay what the stream brings; False when it broke and another has taken its place."""
        try:
            await self._relay()
        except (ReplicaLost, StreamFailed) as error:
            await self._move(error)
            return False
        return True

    async def _relay(self) -> None:
        head = await self._stream.head()
        self._content_type = head["content_type"].encode("latin-1", "replace")
        if head["status"] != 200:
            raise await self._upstream_error(head)
        if head["content_type"].startswith("text/event-stream"):
            self._is_continuable = head["continuable"]
            if self._sent_ids and not self._is_continuable:
                raise _incomplete()
            await self._relay_events()
        else:
            await self._relay_whole()

    async def _move(self, error: ReplicaLost | StreamFailed) -> None:
        """Take another stream in place of one that broke. Raises ``error`` when there is none to be had."""
        stream, resume = self._stream, None
        stream.sink = None  # what a silent replica says after all is no part of the answer any more
        if self._exchange.first_byte_s is not None:
            self._sent_ids += stream.token_ids
        self._was_lost |= not is_failure(error)
        self._dispatch.on_broken(error)
        if self._watcher is not None and self._watcher.done():
            raise ClientGone("the client closed its connection as its replica was lost")
        if self._exchange.first_byte_s is not None:
            resume = self._sent_ids or None
            if not self._is_continuable or not (resume or _is_role(self._first_body)):
                raise error
            self._has_role_twice = resume is None
        self._stream = await self._dispatch.again(error, resume)
        self._is_answering = False
        self._idle_since_s = time.monotonic()
        await stream.finish(timeout_s=0.0)  # what the rest would have cost is nobody's to pay

    async def _relay_events(self) -> None:
        """The first chunk, and those that a client is slow to take, pass through here; the others through ``_push``."""
        exchange, stream = self._exchange, self._stream
        while body := await stream.read():
            now_s = time.monotonic()
            if self._has_role_twice:
                self._has_role_twice = False
                body = body.partition(b"\n\n")[2]
            if not self._is_answering:
                self._is_answering, self._was_lost = True, False
                self._dispatch.on_first_byte()
            if exchange.first_byte_s is None:
                exchange.first_byte_s = now_s
                self._first_body = body
                await self._start()
            else:
                exchange.gaps.add(now_s - self._idle_since_s)
            self._idle_since_s = now_s
            if body:
                await self._send_body(body, more_body=True)
            if not stream.has_unread:
                stream.sink = self._push
        stream.sink = None
        await self._start()
        await self._send_body(b"", more_body=False)

    def _push(self, body: bytes) -> None:
        """A chunk from the replica's socket to the client's without waking a task for it.

        The server's ``send`` is run as far as it goes. It stops only where uvicorn waits for a slow client, before it
        has written anything: then it is dropped, and the relay's own task sends the chunk, and waits.
        """
        now_s = time.monotonic()
        sending = self._send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            sending.send(None)  # type: ignore[attr-defined]  # ASGI says Awaitable; what servers have is a coroutine
        except StopIteration:
            self._exchange.gaps.add(now_s - self._idle_since_s)
            self._idle_since_s = now_s
        except (RuntimeError, OSError) as error:
            self._stream.sink = None
            self._stream.interrupt(error)
        else:
            sending.close()  # type: ignore[attr-defined]
            self._stream.sink = None
            self._stream.on_body(body)

    async def _relay_whole(self) -> None:
        body = await self._read_all()
        self._exchange.first_byte_s = time.monotonic()
        await self._start(len(body))
        await self._send_body(body, more_body=False)

    async def _read_all(self) -> bytes:
        parts = []
        while part := await self._stream.read():
            self._idle_since_s = time.monotonic()
            parts.append(part)
        return b"".join(parts)

    async def _start(self, length: int | None = None) -> None:
        exchange = self._exchange
        if exchange.is_response_started:
            return
        exchange.is_response_started = True
        exchange.status = 200
        headers = [
            (b"content-type", self._content_type),
            (b"x-request-id", exchange.request_id.encode()),
            (b"x-ballast-pool", exchange.pool.encode()),
            (b"x-ballast-model-version", exchange.version.encode()),
            (b"openai-processing-ms", str(round((time.monotonic() - exchange.arrived_s) * 1000)).encode()),
        ]
        if exchange.fallback is not None:
            headers.append((b"x-ballast-fallback", exchange.fallback.encode()))
        headers.append((b"cache-control", b"no-store") if length is None else (b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _end_with(self, reason: ReplicaLost | StreamFailed | ApiError) -> None:
        """An error frame when the answer has begun, else the error itself for the caller to answer with."""
        exchange = self._exchange
        error = as_api_error(reason, exchange)
        if self._is_lost(reason):
            metrics.LOST.labels(exchange.model).inc()
        if not exchange.is_response_started:
            raise error
        exchange.error_code = error.code
        metrics.STREAMS_BROKEN.labels(exchange.model, exchange.pool).inc()
        await self._send_body(error_event(error, exchange.dialect), more_body=False)

    def _is_lost(self, reason: ReplicaLost | StreamFailed | ApiError) -> bool:
        """Whether the answer ends because its replica was lost, or its gateway has to go."""
        if isinstance(reason, EngineUnavailable | Overloaded | RateLimited):
            return self._was_lost or self._is_ended
        return not (isinstance(reason, ApiError | ReplicaSilent) or is_failure(reason) or is_refusal(reason))

    async def _send_body(self, body: bytes, *, more_body: bool) -> None:
        """Waits for a client that does not read, and no longer than `tick` lets it."""
        self._blocked_since_s = began_s = time.monotonic()
        await self._send({"type": "http.response.body", "body": body, "more_body": more_body})
        self._blocked_since_s = None
        self._exchange.blocked_s += time.monotonic() - began_s

    async def _upstream_error(self, head: ResponseHead) -> ApiError:
        return translate_error(head["status"], await self._read_all(), self._exchange)

    async def _watch(self) -> None:
        await disconnect(self._receive)
        self._stream.interrupt(ClientGone("the client closed its connection"))

    def tick(self, now_s: float, stood_still_s: float = 0.0) -> None:
        """Time passes: keep the client's connection alive, and give up on a silent replica or a client that does not
        read. While this process ``stood_still_s`` it heard nobody: that time is not theirs.
        """
        self._idle_since_s = min(now_s, self._idle_since_s + stood_still_s)
        timing, exchange = self._timing, self._exchange
        if self._task is None:
            return  # it is over, and its replica says what it cost
        self._dispatch.tick(now_s)
        if self._watcher is None:
            # Only now: most answers end before the first tick, and a task for each would cost more than their relaying.
            self._watcher = asyncio.create_task(self._watch())
        is_out_of_time = now_s - exchange.arrived_s > timing.max_request_s
        if self._blocked_since_s is not None:
            if is_out_of_time or now_s - self._blocked_since_s > timing.slow_reader_timeout_s:
                exchange.error_code = "slow_reader"
                self._task.cancel()
            return
        if is_out_of_time:
            self._stream.interrupt(UpstreamTimeout(f"the answer took longer than {timing.max_request_s:g} s"))
            return
        limit_s = timing.inter_chunk_timeout_s
        if exchange.first_byte_s is None:
            limit_s = timing.first_byte_timeout_s + self._dispatch.generation_s
        if now_s - max(self._idle_since_s, self._stream.progressed_s) > limit_s:
            self._stream.interrupt(ReplicaSilent(f"the model sent nothing for {limit_s:g} s"))
        elif self._is_event_stream and now_s - max(self._kept_alive_s, self._idle_since_s) >= timing.keep_alive_s:
            if self._keep_alive_task is not None and not self._keep_alive_task.done():
                return  # its client has not read the last one
            self._kept_alive_s = now_s
            self._keep_alive_task = asyncio.create_task(self._keep_alive())

    def end(self) -> None:
        """There is no more time for this answer."""
        self._is_ended = True
        self._stream.interrupt(EngineUnavailable("this server is stopping", retry_after_s=RETRY_AFTER_LOST_S))

    @property
    def _is_event_stream(self) -> bool:
        return self._content_type.startswith(b"text/event-stream")

    async def _keep_alive(self) -> None:
        await self._start()
        await self._send({"type": "http.response.body", "body": sse.KEEP_ALIVE, "more_body": True})


def _is_role(body: bytes) -> bool:
    """Whether this is a chat's first event alone: its role, made of no token. Another stream brings it again."""
    event, _, rest = body.partition(b"\n\n")
    return not rest and b'"role":"assistant"' in event and b'"content":""' in event


def as_api_error(error: Exception, exchange: Exchange) -> ApiError:
    """What a client is told when its stream broke; the reason stays in our log."""
    if isinstance(error, ApiError):
        return error
    logger.warning("request %s broke: %s", exchange.request_id, error, extra={"replica": exchange.replica})
    if isinstance(error, ReplicaSilent):
        return UpstreamTimeout(str(error))
    if isinstance(error, StreamFailed) and error.failure["cause"] == "request":
        return _refusal(error.failure["message"], None)
    if isinstance(error, StreamFailed) and error.failure["cause"] == "engine_failed":
        return InternalError(error.failure["message"])
    return _incomplete()


def _incomplete() -> EngineUnavailable:
    return EngineUnavailable(
        "the replica that served this request is gone; the answer is incomplete", retry_after_s=RETRY_AFTER_LOST_S
    )


def translate_error(status: int, body: bytes, exchange: Exchange) -> ApiError:
    """vLLM's error answer as ours. Its messages about the request are for the client; those about itself are not."""
    message, param = _message_of(body)
    if status == 404:
        return ModelNotFound(message)
    if 400 <= status < 500:
        return _refusal(message, param)
    logger.error("request %s: the engine answered %d: %s", exchange.request_id, status, message)
    if status == 503:
        return EngineUnavailable("the engine cannot take requests now", retry_after_s=RETRY_AFTER_LOST_S)
    return InternalError("the engine failed while serving this request")


def _refusal(message: str, param: str | None) -> ApiError:
    if "maximum context length" in message:
        return ContextLengthExceeded(message, param=param)
    return BadRequest(message, param=param)


def _message_of(body: bytes) -> tuple[str, str | None]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")[:500], None
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if isinstance(error, dict):
        return str(error.get("message", error.get("detail", error))), error.get("param")
    return str(error), None
