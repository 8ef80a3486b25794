"""A replica's private surface, against a gateway played by the test."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serving.engine.base import Engine, EngineLoad, current_request
from serving.engine.scripted import Script, ScriptedEngine
from serving.protocol.asgi import AsgiApp, Receive, Scope, Send
from serving.protocol.frames import HEADER, Decoder, Kind, OpenHead, encode, encode_open, prove
from serving.replica.server import MAX_BODY_BYTES, ReplicaServer, _GatewayConnection
from tests.support.engines import AppEngine, Events, Flood, Recorder, start
from tests.support.peers import GatewayPeer
from tests.support.stack import CHAT, MODEL, SECRET, chat, until


class Bench:
    """A replica under test and the gateways that the test plays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._servers: list[ReplicaServer] = []
        self._peers: list[GatewayPeer] = []

    async def serve(self, engine: Engine) -> ReplicaServer:
        self._servers.append(ReplicaServer(engine, "r0", SECRET))
        await self._servers[-1].listen_unix(self.path)
        return self._servers[-1]

    async def connect(self) -> GatewayPeer:
        """A connection that has not proved itself."""
        self._peers.append(await GatewayPeer.connect(self.path))
        return self._peers[-1]

    async def gateway(self) -> GatewayPeer:
        """A connection that was accepted."""
        self._peers.append(await GatewayPeer.accepted(self.path))
        return self._peers[-1]

    async def gateway_of(self, app: AsgiApp) -> GatewayPeer:
        await self.serve(AppEngine(app))
        return await self.gateway()

    async def close(self) -> None:
        for peer in self._peers:
            await peer.close()
        for server in self._servers:
            await server.drain(0)
            await server.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    started = Bench(tmp_path / "r0")
    yield started
    await started.close()


async def read_stream(peer: GatewayPeer) -> tuple[bytes, Kind, Any]:
    """The body of the one open stream, how it ended, and what the last frame said."""
    body = b""
    while True:
        kind, _, payload = await peer.read_kind(Kind.BODY, Kind.END, Kind.FAIL)
        if kind != Kind.BODY:
            return body, kind, json.loads(payload)
        body += payload


# -------------------------------------------------------------------------------------------------------------- access


async def test_the_socket_is_for_its_owner_alone(bench: Bench) -> None:
    await bench.serve(ScriptedEngine(Script()))
    assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600


async def test_a_bad_secret_is_refused_before_any_request(bench: Bench) -> None:
    app = Events([])
    await bench.serve(AppEngine(app))
    peer = await bench.connect()
    _, _, challenge = await peer.read_kind(Kind.CHALLENGE)
    peer.send(Kind.PROOF, 0, prove(b"another secret", json.loads(challenge)["nonce"]))
    peer.open(1, chat())
    assert await peer.is_closed()
    assert not app.is_at_hold.is_set()


async def test_a_request_without_a_proof_is_refused(bench: Bench) -> None:
    app = Events([])
    await bench.serve(AppEngine(app))
    peer = await bench.connect()
    await peer.read_kind(Kind.CHALLENGE)
    peer.open(1, chat())
    assert await peer.is_closed()
    assert not app.is_at_hold.is_set()


async def test_an_answer_to_another_challenge_is_refused(bench: Bench) -> None:
    await bench.serve(ScriptedEngine(Script()))
    first, second = await bench.connect(), await bench.connect()
    _, _, challenge = await first.read_kind(Kind.CHALLENGE)
    second.send(Kind.PROOF, 0, prove(SECRET, json.loads(challenge)["nonce"]))
    assert await second.is_closed()


async def test_before_the_proof_no_large_frame_is_taken_in(bench: Bench) -> None:
    await bench.serve(ScriptedEngine(Script()))
    peer = await bench.connect()
    await peer.read_kind(Kind.CHALLENGE)
    peer.writer.write(HEADER.pack(33, 0, Kind.PROOF))
    assert await peer.is_closed()


async def test_a_silent_peer_is_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.replica.server.PROOF_TIMEOUT_S", 0.01)
    await bench.serve(ScriptedEngine(Script()))
    assert await (await bench.connect()).is_closed()


@pytest.mark.parametrize("payload", [b"no json\n{}", b"[]\n{}", b"{}\n{}"])
async def test_a_malformed_request_frame_closes_the_connection(bench: Bench, payload: bytes) -> None:
    peer = await bench.gateway_of(Events([]))
    peer.send(Kind.OPEN, 1, payload)
    assert await peer.is_closed()


@pytest.mark.parametrize("stream", [0, 1])
async def test_a_stream_id_in_use_closes_the_connection(bench: Bench, stream: int) -> None:
    peer = await bench.gateway_of(Events([], holds=True))
    peer.open(1)
    peer.open(stream)
    assert await peer.is_closed()


async def test_frames_for_unknown_streams_are_ignored(bench: Bench) -> None:
    peer = await bench.gateway_of(Events([b"x"]))
    for kind in (Kind.CANCEL, Kind.PAUSE, Kind.RESUME, Kind.BODY):
        peer.send(kind, 99)
    peer.open(1)
    assert (await read_stream(peer))[:2] == (b"x", Kind.END)


async def test_a_replica_on_a_network_asks_for_the_same_proof() -> None:
    server = ReplicaServer(ScriptedEngine(Script()), "r0", SECRET)
    port = await server.listen_tcp("127.0.0.1")
    peer = GatewayPeer(*await asyncio.open_connection("127.0.0.1", port))
    _, _, challenge = await peer.read_kind(Kind.CHALLENGE)
    peer.send(Kind.PROOF, 0, prove(SECRET, json.loads(challenge)["nonce"]))
    assert await peer.read_kind(Kind.ACCEPTED)
    await peer.close()
    await server.close()


# ------------------------------------------------------------------------------------------------------------- streams


async def test_an_answer_becomes_head_body_and_end_with_its_cost(bench: Bench) -> None:
    await bench.serve(ScriptedEngine(Script()))
    peer = await bench.gateway()
    peer.open(7, chat("one two", max_tokens=3, stream=True))
    kind, stream, payload = await peer.read_kind(Kind.HEAD)
    assert (stream, json.loads(payload)) == (
        7,
        {"status": 200, "content_type": "text/event-stream; charset=utf-8", "continuable": False},
    )
    body, kind, usage = await read_stream(peer)
    assert body.endswith(b"data: [DONE]\n\n")
    assert kind == Kind.END
    assert usage == {"prompt_tokens": 2, "cached_tokens": 0, "output_tokens": 3, "finish_reason": "length"}


async def test_a_large_answer_goes_in_parts(bench: Bench) -> None:
    """A gateway closes the connection, and all streams on it, at a frame over MAX_FRAME_BYTES."""
    large = bytes(range(256)) * 4 * 1024 * 2 + b"end"
    await bench.serve(AppEngine(Recorder(large)))
    peer = await bench.gateway()
    peer.open(1, chat())
    parts: list[bytes] = []
    kind, _, payload = await peer.read_kind(Kind.BODY, Kind.END)
    while kind == Kind.BODY:
        parts.append(payload)
        kind, _, payload = await peer.read_kind(Kind.BODY, Kind.END)
    assert b"".join(parts) == large
    assert max(map(len, parts)) == MAX_BODY_BYTES


async def test_streams_are_interleaved_and_each_is_whole(bench: Bench) -> None:
    await bench.serve(ScriptedEngine(Script()))
    peer = await bench.gateway()
    for stream in range(1, 21):
        peer.open(stream, chat(max_tokens=5, stream=True))
    bodies, num_ended = dict.fromkeys(range(1, 21), b""), 0
    while num_ended < 20:
        kind, stream, payload = await peer.read_kind(Kind.BODY, Kind.END)
        bodies[stream] += payload if kind == Kind.BODY else b""
        num_ended += kind == Kind.END
    assert all(body.endswith(b"[DONE]\n\n") and b"w4" in body for body in bodies.values())


async def test_cancel_aborts_in_the_engine_and_still_reports_the_cost(bench: Bench) -> None:
    engine = ScriptedEngine(Script(step_s=0.005))
    await bench.serve(engine)
    peer = await bench.gateway()
    peer.open(1, chat("three words here", max_tokens=1000, stream=True))
    for _ in range(4):  # the role, then three tokens
        await peer.read_kind(Kind.BODY)
    peer.send(Kind.CANCEL, 1)
    kind, _, usage = await peer.read_end()
    assert kind == Kind.END
    assert usage["prompt_tokens"] == 3
    assert 3 <= usage["output_tokens"] < 1000
    assert engine.aborted == ["three words here"]
    assert engine.load().running == 0


async def test_a_lost_gateway_aborts_its_requests(bench: Bench) -> None:
    engine = ScriptedEngine(Script())
    server = await bench.serve(engine)
    peer = await bench.gateway()
    for stream in range(1, 4):
        peer.open(stream, chat("!stall"))
    await until(lambda: engine.load().running == 3)
    await peer.close()
    await until(lambda: len(engine.aborted) == 3)
    assert server.num_streams == 0


async def test_pause_stops_the_flow_and_resume_starts_it(bench: Bench) -> None:
    flood = Flood(b"x" * 1000, max_chunks=500)
    peer = await bench.gateway_of(flood)
    peer.open(1)
    await peer.read_kind(Kind.BODY)
    peer.send(Kind.PAUSE, 1)
    # What the app sends after the pause has arrived stays with the app: no more than one message gets through.
    paused_at = await standstill(flood)
    assert paused_at < 500 * 1000
    peer.send(Kind.RESUME, 1)
    body, kind, _ = await read_stream(peer)
    assert kind == Kind.END
    assert len(body) == 499 * 1000


async def standstill(flood: Flood) -> int:
    """What the flood has sent when it stopped getting anything through for a hundred loop turns."""
    unchanged, last = 0, -1
    while unchanged < 100:
        await asyncio.sleep(0)
        unchanged = unchanged + 1 if flood.sent_bytes[0] == last else 0
        last = flood.sent_bytes[0]
    return last


async def test_a_paused_stream_can_be_cancelled(bench: Bench) -> None:
    flood = Flood(b"x", max_chunks=10**6)
    peer = await bench.gateway_of(flood)
    peer.open(1)
    await peer.read_kind(Kind.BODY)
    peer.send(Kind.PAUSE, 1)
    await standstill(flood)
    peer.send(Kind.CANCEL, 1)
    assert (await peer.read_end())[0] == Kind.END


async def test_a_gateway_that_stops_reading_stops_the_engine(bench: Bench) -> None:
    """Unsent bytes of a connection are bounded, whatever the engine would like to send."""
    flood = Flood(b"x" * 100_000, max_chunks=10_000)
    peer = await bench.gateway_of(flood)
    peer.writer.transport.pause_reading()
    peer.open(1)
    await until(lambda: flood.sent_bytes)
    assert await standstill(flood) < 8 * 2**20
    peer.send(Kind.CANCEL, 1)
    peer.writer.transport.resume_reading()
    assert (await peer.read_end())[0] == Kind.END


async def test_frames_of_one_loop_turn_leave_in_one_write(bench: Bench) -> None:
    class Transport:
        def __init__(self) -> None:
            self.writes: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.writes.append(data)

        def set_write_buffer_limits(self, high: int) -> None:
            pass

        def abort(self) -> None:
            pass

    connection, transport = _GatewayConnection(await bench.serve(AppEngine(Events([])))), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    for stream in range(10):
        connection.send(encode(Kind.BODY, stream, b"x"))
    await asyncio.sleep(0)
    challenge, frames = transport.writes
    assert [kind for kind, _, _ in Decoder().feed(challenge)] == [Kind.CHALLENGE]
    assert [stream for _, stream, _ in Decoder().feed(frames)] == list(range(10))
    connection.connection_lost(None)


# ------------------------------------------------------------------------------------------------------------ failures


async def test_an_app_that_raises_is_a_failure_that_tells_no_internals(bench: Bench) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        raise ValueError("secret detail")

    peer = await bench.gateway_of(app)
    peer.open(1)
    _, kind, failure = await read_stream(peer)
    assert kind == Kind.FAIL
    assert failure["message"] == "the engine failed while serving this request"
    assert failure["cause"] == "engine_failed"


async def test_an_answer_of_500_is_a_failure_as_an_error_event_of_a_stream_is(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM answers a request that is not streamed with it where a stream would break. What it says is for our log."""
    peer = await bench.gateway_of(Recorder(b'{"error": {"message": "secret detail"}}', status=500))
    peer.open(1)
    body, kind, failure = await read_stream(peer)
    assert (body, kind) == (b"", Kind.FAIL)
    assert "secret detail" in caplog.text
    assert (failure["message"], failure["cause"]) == ("the engine failed while serving this request", "engine_failed")


async def test_one_broken_request_leaves_the_others_alone(bench: Bench) -> None:
    await bench.serve(ScriptedEngine(Script(step_s=0.002)))
    peer = await bench.gateway()
    peer.open(1, chat("!break", stream=True))
    peer.open(2, chat(max_tokens=10, stream=True))
    ends = [await peer.read_end(), await peer.read_end()]
    assert [(kind, stream) for kind, stream, _ in ends] == [(Kind.FAIL, 1), (Kind.END, 2)]
    assert ends[0][2]["usage"]["output_tokens"] == 2


async def test_the_death_of_the_engine_is_told_with_the_failure(bench: Bench) -> None:
    await bench.serve(ScriptedEngine(Script()))
    peer = await bench.gateway()
    peer.open(1, chat("!die", stream=True))
    kind, _, failure = await peer.read_end()
    assert kind == Kind.FAIL
    assert failure["cause"] == "engine_dead"
    assert failure["usage"]["output_tokens"] == 2


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n', "engine_failed"),
        (b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 400}}\n\n', "request"),
        (
            b'event: error\ndata: {"type":"error","error":{"message":"EngineCore encountered an issue."}}\n\n',
            "engine_failed",
        ),
    ],
    ids=["openai", "openai, of the request", "anthropic"],
)
async def test_an_error_event_of_vllm_is_a_failure(bench: Bench, error: bytes, cause: str) -> None:
    """vLLM says that a stream broke with an event, and then [DONE] as if all were well."""
    peer = await bench.gateway_of(Events([b"data: {}\n\n", error, b"data: [DONE]\n\n"]))
    peer.open(1)
    body, kind, failure = await read_stream(peer)
    assert (body, kind) == (b"data: {}\n\n", Kind.FAIL)
    assert (failure["message"], failure["cause"]) == ("EngineCore encountered an issue.", cause)


async def test_a_stream_that_is_failed_before_its_first_step_says_so(bench: Bench) -> None:
    server = await bench.serve(ScriptedEngine(Script()))
    peer = await bench.gateway()
    [connection] = server._connections
    head: OpenHead = {
        "method": "POST", "path": CHAT, "request_id": "r", "model": MODEL,
        "created": 0, "continuable": False, "resume": [],
    }  # fmt: skip
    connection._on_frame(Kind.OPEN, 1, encode_open(1, head, json.dumps(chat()).encode())[HEADER.size :])
    connection.fail_all("the replica is shutting down", "draining")
    kind, stream, failure = await peer.read_end()
    assert (kind, stream, failure["cause"]) == (Kind.FAIL, 1, "draining")
    assert not connection.streams


async def test_tokens_of_which_nothing_is_sent_are_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of reasoning that the client does not want."""
    monkeypatch.setattr("serving.replica.server.LOAD_INTERVAL_S", 0.001)
    monkeypatch.setattr("serving.replica.server.PROGRESS_INTERVAL_S", 0.002)
    thinks = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await thinks.wait()
        current_request.get().output_tokens += 10
        await asyncio.Event().wait()

    peer = await bench.gateway_of(app)
    peer.open(1)
    await peer.read_kind(Kind.HEAD)
    thinks.set()
    assert (await peer.read_kind(Kind.PROGRESS))[1] == 1
    peer.send(Kind.CANCEL, 1)


@pytest.mark.parametrize("event", [b'data: {"error": nonsense', b'data: {"error": 5}\n\n', b'data: {"error": {}}\n\n'])
async def test_an_unreadable_error_event_is_a_failure_too(bench: Bench, event: bytes) -> None:
    peer = await bench.gateway_of(Events([event]))
    peer.open(1)
    assert (await read_stream(peer))[1] == Kind.FAIL


# --------------------------------------------------------------------------------------------------------------- drain


async def test_drain_lets_open_streams_finish(bench: Bench) -> None:
    server = await bench.serve(ScriptedEngine(Script(step_s=0.001)))
    peer = await bench.gateway()
    peer.open(1, chat(max_tokens=20, stream=True))
    await peer.read_kind(Kind.BODY)
    draining = asyncio.create_task(server.drain(5))
    _, kind, usage = await read_stream(peer)
    await draining
    assert (kind, usage["output_tokens"]) == (Kind.END, 20)


async def test_drain_is_told_to_gateways_at_once(bench: Bench) -> None:
    server = await bench.serve(ScriptedEngine(Script()))
    peer = await bench.gateway()
    _, _, load = await peer.read_kind(Kind.LOAD)
    assert json.loads(load)["draining"] is False
    await server.drain(0)
    _, _, load = await peer.read_kind(Kind.LOAD)
    assert json.loads(load)["draining"] is True


async def test_drain_fails_what_is_left_and_close_does_not_swallow_it(bench: Bench) -> None:
    engine = ScriptedEngine(Script(step_s=0.001))
    server = await bench.serve(engine)
    peer = await bench.gateway()
    peer.open(1, chat("a b", max_tokens=4000, stream=True))
    peer.open(2, chat("!stall"))
    await peer.read_kind(Kind.BODY)
    await server.drain(0.02)
    await server.close()
    ends = sorted([await peer.read_end(), await peer.read_end()], key=lambda end: end[1])
    assert [(kind, stream) for kind, stream, _ in ends] == [(Kind.FAIL, 1), (Kind.FAIL, 2)]
    assert [end["message"] for _, _, end in ends] == ["the replica is shutting down"] * 2
    assert ends[0][2]["usage"]["output_tokens"] > 0
    assert len(engine.aborted) == 2
    assert await peer.is_closed()


async def test_load_is_reported_again_and_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.replica.server.LOAD_INTERVAL_S", 0.005)
    await bench.serve(ScriptedEngine(Script(step_s=0.001)))
    peer = await bench.gateway()
    peer.open(1, chat(max_tokens=500, stream=True))
    loads = [json.loads((await peer.read_kind(Kind.LOAD))[2]) for _ in range(6)]
    assert loads[0]["running"] == 0
    assert loads[-1]["running"] == 1
    assert loads[-1]["tokens_per_s"] > 0
    assert loads[-1]["iterations"] > loads[1]["iterations"]


async def test_an_engine_that_stands_still_with_work_is_reported(bench: Bench) -> None:
    engine = AppEngine(Events([]))
    server = await bench.serve(engine)
    assert server.load()["standstill_s"] == 0.0
    engine.gauges = EngineLoad(iterations=3, unfinished=1)
    server.load()
    await until(lambda: server.load()["standstill_s"] > 0.01)
    engine.gauges = EngineLoad(iterations=4, unfinished=1)
    assert server.load()["standstill_s"] == 0.0
