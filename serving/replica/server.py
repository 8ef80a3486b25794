"""A replica's private surface: the multiplexed connection that gateways open, and the engine's app called in process
behind it.

No HTTP server stands between: a request arrives as one OPEN frame, vLLM's ASGI app is awaited directly, and what it
sends becomes HEAD and BODY frames. Frames of one event-loop turn leave in one write.
"""

import asyncio
import logging
import math
import secrets
import socket
from hmac import compare_digest
from http import HTTPStatus
from pathlib import Path
from typing import cast

import orjson

from serving.engine.base import Engine, RequestContext, current_request
from serving.protocol.asgi import Message
from serving.protocol.frames import (
    MAX_FRAME_BYTES,
    PROOF_BYTES,
    PROTOCOL_VERSION,
    Cause,
    Decoder,
    FrameError,
    Kind,
    Load,
    OpenHead,
    ResponseHead,
    decode_open,
    encode,
    encode_json,
    piece,
    prove,
)
from serving.replica.watchdog import Watchdog

logger = logging.getLogger("ballast.replica")

#: Of one BODY frame. A gateway reads frames whole, and lets go of a peer whose frames are over MAX_FRAME_BYTES.
MAX_BODY_BYTES = 256 * 1024
#: A connection that has not proved itself by then is closed.
PROOF_TIMEOUT_S = 5.0
LOAD_INTERVAL_S = 0.25
PROGRESS_INTERVAL_S = 2.0
DRAIN_POLL_S = 0.01
#: How long a stream that was failed has to say so to its gateway.
FAIL_GRACE_S = 0.5
#: Turns of the event loop that an engine may take to let go of a dropped request.
MAX_LET_GO_TURNS = 100
#: Above this much unsent data on a connection its streams wait; the gateway has stopped reading.
HIGH_WATER_BYTES = 4 * 1024 * 1024
MAX_LOGGED_BYTES = 500
ENGINE_FAILED = "the engine failed while serving this request"
#: How vLLM says that a stream broke: in OpenAI's shape, and in Anthropic's.
ENGINE_ERROR_EVENTS = (b'data: {"error"', b"event: error\n")


class ReplicaServer:
    """Listens for gateways and serves their requests from ``engine``.

    Args:
        engine: a started engine.
        name: this replica's id, told to gateways.
        secret: the cluster's shared secret; a peer that cannot prove it is closed before it can send a request.
    """

    def __init__(self, engine: Engine, name: str, secret: bytes) -> None:
        self.engine = engine
        self.name = name
        self.secret = secret
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._connections: set[_GatewayConnection] = set()
        self._load_task: asyncio.Task[None] | None = None
        self._tokens_per_s = 0.0
        self._watchdog = Watchdog(math.inf)

    async def listen_unix(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(lambda: _GatewayConnection(self), sock=_bind_private(path)))
        self._start_reporting()

    async def listen_tcp(self, host: str) -> int:
        """Listen on a free port of ``host`` for gateways on other nodes; returns the port."""
        server = await asyncio.get_running_loop().create_server(lambda: _GatewayConnection(self), host, 0)
        self._servers.append(server)
        self._start_reporting()
        return int(server.sockets[0].getsockname()[1])

    @property
    def num_streams(self) -> int:
        return sum(len(connection.streams) for connection in self._connections)

    async def drain(self, budget_s: float) -> None:
        """Tell gateways to send nothing more, wait for open streams up to ``budget_s``, then fail what is left."""
        self.draining = True
        self._report_load()
        await self._streams_ended(budget_s)
        for connection in list(self._connections):
            connection.fail_all("the replica is shutting down", "engine_dead" if self.engine.dead else "draining")
        await self._streams_ended(FAIL_GRACE_S)

    async def abandon(self, message: str) -> None:
        """Fail every stream now: the engine will never finish them. Then close."""
        self.draining = True
        for connection in list(self._connections):
            connection.fail_all(message, "engine_dead")
        await self._streams_ended(FAIL_GRACE_S)
        await self.close()

    async def _streams_ended(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while self.num_streams and loop.time() < deadline_s:  # noqa: ASYNC110 - counts over all connections
            await asyncio.sleep(DRAIN_POLL_S)

    async def close(self) -> None:
        if self._load_task is not None:
            self._load_task.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # let transports flush what fail_all queued

    def add(self, connection: "_GatewayConnection") -> None:
        self._connections.add(connection)

    def discard(self, connection: "_GatewayConnection") -> None:
        self._connections.discard(connection)

    def load(self) -> Load:
        engine = self.engine.load()
        return {
            "running": engine.running,
            "waiting": engine.waiting,
            "kv_cache_usage": engine.kv_cache_usage,
            "kv_tokens": engine.kv_tokens,
            "tokens_per_s": self._tokens_per_s,
            "iterations": engine.iterations,
            "standstill_s": self._watchdog.standstill_s(engine, asyncio.get_running_loop().time()),
            "draining": self.draining,
            "streams": self.num_streams,
            "pending_prompt_tokens": sum(connection.pending_prompt_tokens for connection in self._connections),
            "work": engine.work,
            "speed": engine.speed,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "kv_capacity_tokens": engine.kv_capacity_tokens,
        }

    def _start_reporting(self) -> None:
        if self._load_task is None:
            self._load_task = asyncio.create_task(self._report_forever())

    async def _report_forever(self) -> None:
        loop = asyncio.get_running_loop()
        last_tokens, last_s = self.engine.load().generated_tokens, loop.time()
        progress_due_s = last_s + PROGRESS_INTERVAL_S
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            tokens, now_s = self.engine.load().generated_tokens, loop.time()
            self._tokens_per_s = (tokens - last_tokens) / (now_s - last_s)
            last_tokens, last_s = tokens, now_s
            self._report_load()
            if now_s >= progress_due_s:
                progress_due_s = now_s + PROGRESS_INTERVAL_S
                for connection in self._connections:
                    for stream in connection.streams.values():
                        stream.report_progress()

    def _report_load(self) -> None:
        load = self.load()
        for connection in self._connections:
            connection.send_load(load)


def _bind_private(path: Path) -> socket.socket:
    """A Unix socket that only this user can reach."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    path.chmod(0o600)
    return listener


class _GatewayConnection(asyncio.Protocol):
    """One gateway's connection: proves the peer, then runs a stream per OPEN frame."""

    def __init__(self, server: ReplicaServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(PROOF_BYTES)  # until the peer has proved itself, it may not fill our memory
        self._nonce = secrets.token_hex(16)
        self._proven = False
        self._outbox: list[bytes] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self._transport: asyncio.Transport | None = None
        self._proof_timer: asyncio.TimerHandle | None = None
        self.streams: dict[int, _Stream] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._proof_timer = self._loop.call_later(PROOF_TIMEOUT_S, self._transport.abort)
        challenge = {"version": PROTOCOL_VERSION, "replica": self._server.name, "nonce": self._nonce}
        self._transport.write(encode_json(Kind.CHALLENGE, 0, challenge))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.discard(self)
        self._transport = None
        if self._proof_timer is not None:
            self._proof_timer.cancel()
        self.writable.set()
        for stream in list(self.streams.values()):
            stream.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, stream_id, payload in self._decoder.feed(data):
                self._on_frame(kind, stream_id, payload)
        except (FrameError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            logger.warning("closing a gateway connection: %s", error)
            self.close()

    def _on_frame(self, kind: int, stream_id: int, payload: bytes) -> None:
        if not self._proven:
            self._check_proof(kind, payload)
        elif kind == Kind.OPEN:
            head, body = decode_open(payload)
            if stream_id in self.streams or stream_id == 0:
                raise FrameError(f"stream {stream_id} is already open")
            self.streams[stream_id] = _Stream(self, stream_id, head, body)
        elif stream := self.streams.get(stream_id):
            if kind == Kind.CANCEL:
                stream.cancel()
            elif kind == Kind.PAUSE:
                stream.may_send.clear()
            elif kind == Kind.RESUME:
                stream.may_send.set()

    def _check_proof(self, kind: int, payload: bytes) -> None:
        if kind != Kind.PROOF or not compare_digest(payload, prove(self._server.secret, self._nonce)):
            raise FrameError("the peer does not know the cluster's secret")
        self._proven = True
        self._decoder.max_frame_bytes = MAX_FRAME_BYTES
        assert self._proof_timer is not None
        self._proof_timer.cancel()
        self._server.add(self)
        self.send(encode(Kind.ACCEPTED, 0))
        self.send_load(self._server.load())

    @property
    def engine(self) -> Engine:
        return self._server.engine

    @property
    def pending_prompt_tokens(self) -> int:
        """Prompts, as the gateway has estimated them, whose answers have not begun."""
        return sum(stream.pending_prompt_tokens for stream in self.streams.values())

    def send(self, frame: bytes) -> None:
        """Queue a frame; everything queued in this event-loop turn leaves in one write."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(frame)

    def send_load(self, load: Load) -> None:
        self.send(encode_json(Kind.LOAD, 0, load))

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._outbox))
        self._outbox.clear()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def fail_all(self, message: str, cause: Cause) -> None:
        for stream in list(self.streams.values()):
            stream.fail(message, cause)

    def close(self) -> None:
        self._flush()
        if self._transport is not None:
            self._transport.close()


class _Stream:
    """One request on its way through the engine's app."""

    def __init__(self, connection: _GatewayConnection, stream_id: int, head: OpenHead, body: bytes) -> None:
        self._connection = connection
        self._id = stream_id
        self._head = head
        self._body = body
        self._is_body_read = False
        self._is_dropped = False
        self._is_silent = True
        self._num_reported = 0
        self.pending_prompt_tokens = head.get("prompt_tokens", 0)
        self._failure: str | None = None
        self._cause: Cause = "request"
        self._is_error_due = False
        # A chat's first event is its role, made of no token; with ``resume`` it has been sent before.
        self._is_role_due = head["path"] == "/v1/chat/completions" and not head["resume"]
        self._disconnected = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self._request = RequestContext(
            model_name=head["model"],
            is_constrained=head.get("is_constrained", False),
            created=head["created"],
            resume=tuple(head["resume"]),
            continuable=head["continuable"] and (not head.get("is_seeded", False) or connection.engine.draws_by_place),
        )
        self._is_begun = False
        self._task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        """The gateway no longer wants the answer: the app sees a disconnect and aborts the request in the engine."""
        self._is_dropped = True
        self._disconnected.set()
        self.may_send.set()

    def fail(self, message: str, cause: Cause) -> None:
        """End the stream with an error now, and drop the request."""
        self._failure, self._cause = self._failure or message, cause
        self._task.cancel()
        if not self._is_begun:  # a task that is cancelled before its first step never takes it
            self._finish()

    def report_progress(self) -> None:
        """Call now and then: tells the gateway that tokens were made, where nothing was sent since the last call."""
        num_made = self._request.output_tokens
        if self._is_silent and num_made > self._num_reported:
            self._connection.send(encode(Kind.PROGRESS, self._id))
        self._num_reported, self._is_silent = num_made, True

    async def _run(self) -> None:
        self._is_begun = True
        current_request.set(self._request)
        try:
            await self._connection.engine.app(self._scope(), self._receive, self._send)
        except asyncio.CancelledError:
            if self._failure is None:
                self._failure, self._cause = "the replica dropped the request", "engine_failed"
        except Exception:  # the engine's app is foreign code: whatever it raises ends this stream and nothing else
            logger.exception("request %s: the engine's app raised", self._head["request_id"])
            if self._failure is None:
                self._failure, self._cause = ENGINE_FAILED, "engine_failed"
        finally:
            if self._is_dropped:
                await self._let_go()
            self._finish()

    async def _let_go(self) -> None:
        """vLLM cancels the making of a whole answer without waiting for it, and only its end says what it has cost."""
        for _ in range(MAX_LET_GO_TURNS):
            if not self._request.num_generating:
                return
            await asyncio.sleep(0)

    def _finish(self) -> None:
        """Report what was spent, also to a gateway that has cancelled."""
        connection, usage = self._connection, self._request.usage
        connection.streams.pop(self._id, None)
        if self._failure is None or self._is_dropped:
            connection.send(encode_json(Kind.END, self._id, usage))
        else:
            cause = "engine_dead" if connection.engine.dead else self._cause
            failure = {"message": self._failure, "cause": cause, "usage": usage}
            connection.send(encode_json(Kind.FAIL, self._id, failure))

    def _scope(self) -> dict[str, object]:
        path = self._head["path"]
        return {
            "type": "http",
            # Before 2.4 an app watches for the disconnect itself; since then it only notices when it sends (Starlette),
            # and a request that waits in the engine sends nothing.
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self._head["method"],
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"host", b"replica"),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(self._body)).encode()),
                (b"x-request-id", self._head["request_id"].encode()),
            ],
            "client": ("gateway", 0),
            "server": ("replica", 0),
            "state": {},
        }

    async def _receive(self) -> Message:
        if not self._is_body_read:
            self._is_body_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._is_dropped or self._failure is not None:
            if self._is_error_due:
                self._is_error_due = False
                body = message.get("body", b"")[:MAX_LOGGED_BYTES].decode("utf-8", "replace")
                logger.error("request %s: the engine's app answered 500: %s", self._head["request_id"], body)
            return
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body.startswith(ENGINE_ERROR_EVENTS):
                self._failure, status = error_event(body)
                self._cause = "engine_failed" if status >= 500 else "request"
            elif body:
                self.pending_prompt_tokens, self._is_silent = 0, False
                if len(body) > MAX_BODY_BYTES:
                    body = await self._send_begin(body)
                self._connection.send(self._body_frame(body))
            if not self.may_send.is_set():
                await self.may_send.wait()
            if not self._connection.writable.is_set():
                await self._connection.writable.wait()
        elif message["status"] >= 500 and self._connection.engine.dead:
            self._failure = "the engine died"
        elif message["status"] == HTTPStatus.INTERNAL_SERVER_ERROR:  # as an error event is of a stream
            self._failure, self._cause, self._is_error_due = ENGINE_FAILED, "engine_failed", True
        elif message["type"] == "http.response.start":
            head: ResponseHead = {
                "status": message["status"],
                "content_type": _content_type(message.get("headers", ())),
                "continuable": self._request.continuable,
            }
            self._connection.send(encode_json(Kind.HEAD, self._id, head))

    async def _send_begin(self, body: bytes) -> bytes:
        """Send all of a large body but its last part, which is returned: others' streams share the connection, and a
        whole answer can have any size. The tokens that a body is made of go with its last part."""
        begin = 0
        while len(body) - begin > MAX_BODY_BYTES and not self._disconnected.is_set():
            self._connection.send(encode(Kind.BODY, self._id, body[begin : begin + MAX_BODY_BYTES]))
            begin += MAX_BODY_BYTES
            await self.may_send.wait()
            await self._connection.writable.wait()
        return b"" if self._disconnected.is_set() else body[begin:]

    def _body_frame(self, body: bytes) -> bytes:
        """``body`` with the tokens that it is made of: those made since the last piece of the answer was sent."""
        unsent = self._request.unsent_ids
        if self._is_role_due:
            self._is_role_due = False
        elif unsent and self._request.continuable:
            frame = piece(self._id, unsent, body)
            unsent.clear()
            return frame
        return encode(Kind.BODY, self._id, body)


def error_event(event: bytes) -> tuple[str, int]:
    """The message inside an error event of either shape, and the status that it stands for."""
    try:
        error = orjson.loads(event.partition(b"data: ")[2].split(b"\n", 1)[0])["error"]
        return str(error["message"]), error["code"] if isinstance(error.get("code"), int) else 500
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return ENGINE_FAILED, 500


def _content_type(headers: object) -> str:
    for name, value in headers:  # type: ignore[attr-defined]  # ASGI: iterable of byte pairs
        if name.lower() == b"content-type":
            return bytes(value).decode("latin-1")
    return "application/octet-stream"
