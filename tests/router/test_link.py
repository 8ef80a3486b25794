"""A gateway's connection to one replica, against a replica played by the test."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serving.errors import ReplicaLost
from serving.protocol.frames import Decoder, Kind, Load, OpenHead, encode
from serving.router import link as link_module
from serving.router.link import ReplicaLink, StreamFailed
from tests.support.peers import USAGE, FakeReplica, fake_replica
from tests.support.stack import SECRET, until

HEAD: OpenHead = {"method": "POST", "path": "/v1/completions", "request_id": "req-1", "model": "demo",
                  "created": 0, "continuable": False, "resume": []}  # fmt: skip
BUFFER_BYTES = 1000


@asynccontextmanager
async def linked(path: Path, replica: str = "r0", secret: bytes = SECRET) -> AsyncIterator[ReplicaLink]:
    """A started link. ``loads`` and ``num_changes`` say what its listeners heard."""
    link = ReplicaLink(f"unix:{path}", replica, secret)
    link.start(on_load=lambda load: None, on_change=lambda: None)
    try:
        yield link
    finally:
        link.close()
        await asyncio.sleep(0)


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[FakeReplica]:
    async with fake_replica(tmp_path / "r0") as fake:
        yield fake


@pytest.fixture
async def link(tmp_path: Path, replica: FakeReplica) -> AsyncIterator[ReplicaLink]:
    async with linked(tmp_path / "r0") as started:
        yield started


# ------------------------------------------------------------------------------------------------------------- streams


async def test_a_request_and_its_answer(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    stream = link.open(HEAD, b'{"prompt":"hi"}', BUFFER_BYTES)
    kind, stream_id, payload = await peer.read()
    assert (kind, stream_id) == (Kind.OPEN, stream.id)
    assert payload == json.dumps(HEAD, separators=(",", ":")).encode() + b'\n{"prompt":"hi"}'
    peer.head(stream.id)
    peer.send(Kind.BODY, stream.id, b"one")
    peer.send(Kind.BODY, stream.id, b"two")
    peer.end(stream.id)
    assert (await stream.head())["status"] == 200
    assert b"".join([part async for part in parts_of(stream)]) == b"onetwo"
    assert stream.usage == USAGE
    assert link.num_streams == 0


async def parts_of(stream):  # type: ignore[no-untyped-def]
    while part := await stream.read():
        yield part


async def test_what_has_arrived_is_read_before_an_end_and_after_a_failure_nothing_is(
    link: ReplicaLink, replica: FakeReplica
) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    peer.send(Kind.BODY, stream.id, b"part")
    peer.fail(stream.id, "no memory", engine_dead=True)
    await until(lambda: link.num_streams == 0)
    assert await stream.read() == b"part"
    with pytest.raises(StreamFailed, match="no memory") as caught:
        await stream.read()
    assert caught.value.failure["engine_dead"]
    assert stream.usage == USAGE


async def test_frames_for_unknown_streams_are_ignored(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    for kind in (Kind.BODY, Kind.HEAD, Kind.END, Kind.FAIL):
        peer.send(kind, 777, b"junk")
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    peer.end(stream.id)
    assert await stream.read() == b""
    assert link.is_open


async def test_a_full_buffer_pauses_the_replica_and_reading_resumes_it(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    await peer.read_kind(Kind.OPEN)
    for _ in range(3):
        peer.send(Kind.BODY, stream.id, b"x" * 600)
    assert await peer.read() == (Kind.PAUSE, stream.id, b"")
    assert await stream.read() == b"x" * 1800
    assert await peer.read() == (Kind.RESUME, stream.id, b"")


async def test_finish_cancels_a_running_request_and_learns_its_cost(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    finishing = asyncio.create_task(stream.finish(5))
    assert (await peer.read_kind(Kind.CANCEL))[1] == stream.id
    peer.send(Kind.BODY, stream.id, b"too late")
    peer.end(stream.id)
    assert await finishing == USAGE


async def test_an_interrupted_stream_is_still_cancelled_at_its_finish(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    stream.interrupt(RuntimeError("the client left"))
    with pytest.raises(RuntimeError, match="the client left"):
        await reading
    finishing = asyncio.create_task(stream.finish(5))
    await peer.read_kind(Kind.CANCEL)
    peer.end(stream.id)
    assert await finishing == USAGE


async def test_finish_after_the_end_sends_nothing(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    await peer.read_kind(Kind.OPEN)
    peer.end(stream.id)
    assert await stream.read() == b""
    assert await stream.finish(5) == USAGE
    second = link.open(HEAD, b"", BUFFER_BYTES)
    assert (await peer.read())[:2] == (Kind.OPEN, second.id)


async def test_finish_does_not_wait_longer_than_told(link: ReplicaLink, replica: FakeReplica) -> None:
    await replica.accepted()
    await until(lambda: link.is_open)
    assert (await link.open(HEAD, b"", BUFFER_BYTES).finish(0.01))["output_tokens"] == 0


async def test_frames_of_one_loop_turn_leave_in_one_write() -> None:
    class Transport:
        def __init__(self) -> None:
            self.writes: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.writes.append(data)

    link, transport = ReplicaLink("unix:/nowhere", "r0", SECRET), Transport()
    link.on_connected(transport)  # type: ignore[arg-type]
    link.on_frame(Kind.ACCEPTED, 0, b"")
    for _ in range(10):
        link.open(HEAD, b"", BUFFER_BYTES)
    assert transport.writes == []
    await asyncio.sleep(0)
    assert len(transport.writes) == 1
    assert [kind for kind, _, _ in Decoder().feed(transport.writes[0])] == [Kind.OPEN] * 10
    link.send(encode(Kind.CANCEL, 1))
    await asyncio.sleep(0)
    assert len(transport.writes) == 2


# ---------------------------------------------------------------------------------------------------------- connection


async def test_a_lost_connection_fails_every_open_stream_within_a_second(
    link: ReplicaLink, replica: FakeReplica
) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    streams = [link.open(HEAD, b"", BUFFER_BYTES) for _ in range(5)]
    await peer.read_kind(Kind.OPEN)
    peer.head(streams[0].id)
    await streams[0].head()
    readers = [asyncio.create_task(stream.read()) for stream in streams]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await peer.close()
        results = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(result) for result in results] == [ReplicaLost] * 5
    assert link.num_streams == 0


async def test_nothing_is_sent_for_a_stream_that_was_lost(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    lost = link.open(HEAD, b"", BUFFER_BYTES)
    await peer.close()
    again = await replica.accepted()
    await until(lambda: link.is_open)
    await lost.finish(5)
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    assert (await again.read())[:2] == (Kind.OPEN, stream.id)


async def test_without_a_connection_a_request_is_refused(link: ReplicaLink) -> None:
    with pytest.raises(ReplicaLost):
        link.open(HEAD, b"", BUFFER_BYTES)


async def test_the_link_reconnects(link: ReplicaLink, replica: FakeReplica) -> None:
    for _ in range(3):
        peer = await replica.accepted()
        await until(lambda: link.is_open)
        await peer.close()
        await until(lambda: not link.is_open)


async def test_the_link_keeps_trying_until_a_replica_listens(tmp_path: Path) -> None:
    async with linked(tmp_path / "late") as link:
        await asyncio.sleep(0)
        async with fake_replica(tmp_path / "late") as replica:
            await replica.accepted()
            await until(lambda: link.is_open)


async def test_waits_grow_until_a_connection_was_accepted(
    tmp_path: Path, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that takes connections and is the wrong one must not be tried twenty times a second."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(delay_s: float) -> None:
        waits.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(link_module.asyncio, "sleep", note)
    async with asyncio.timeout(5):
        link = ReplicaLink(f"unix:{tmp_path / 'r0'}", "r0", SECRET)
        link.start(on_load=lambda load: None, on_change=lambda: None)
        for _ in range(7):
            await (await replica.connection()).close()
        await (await replica.accepted()).close()
        await (await replica.connection()).close()
        link.close()
    assert waits[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 0.05]


async def test_a_peer_of_another_name_is_refused(tmp_path: Path, replica: FakeReplica) -> None:
    """A reused address: the link neither proves itself nor sends a request there."""
    async with linked(tmp_path / "r0", replica="r9") as link:
        peer = await replica.connection()
        peer.send_json(Kind.CHALLENGE, 0, {"version": 2, "replica": "r0", "nonce": "n"})
        assert await peer.is_closed()
        assert not link.is_open


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.CHALLENGE, b'{"version": 1, "replica": "r0", "nonce": "n"}'),
        (Kind.CHALLENGE, b"[]"),
        (Kind.CHALLENGE, b"not json"),
        (Kind.CHALLENGE, b"{}"),
    ],
)
async def test_a_peer_that_speaks_another_protocol_is_closed(
    link: ReplicaLink, replica: FakeReplica, kind: Kind, payload: bytes
) -> None:
    peer = await replica.connection()
    peer.send(kind, 0, payload)
    assert await peer.is_closed()
    assert not link.is_open


async def test_an_oversized_frame_closes_the_connection(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    stream = link.open(HEAD, b"", BUFFER_BYTES)
    peer.writer.write(b"\xff" * 9)
    with pytest.raises(ReplicaLost):
        await stream.read()


async def test_a_retired_link_lets_its_streams_finish(link: ReplicaLink, replica: FakeReplica) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    streams = [link.open(HEAD, b"", BUFFER_BYTES) for _ in range(2)]
    link.retire()
    peer.send(Kind.BODY, streams[0].id, b"still")
    assert await streams[0].read() == b"still"
    peer.end(streams[0].id)
    assert await streams[0].read() == b""
    peer.send(Kind.BODY, streams[1].id, b"here")
    assert await streams[1].read() == b"here"
    peer.end(streams[1].id)
    assert await peer.is_closed()


async def test_a_retired_link_without_streams_closes_at_once_and_for_good(
    link: ReplicaLink, replica: FakeReplica
) -> None:
    peer = await replica.accepted()
    await until(lambda: link.is_open)
    link.retire()
    assert await peer.is_closed()
    assert replica.num_connections == 1


async def test_loads_reach_the_listener(tmp_path: Path, replica: FakeReplica) -> None:
    loads: list[Load] = []
    link = ReplicaLink(f"unix:{tmp_path / 'r0'}", "r0", SECRET)
    link.start(on_load=loads.append, on_change=lambda: None)
    peer = await replica.accepted()
    peer.load(running=3)
    await until(lambda: loads)
    assert loads[0]["running"] == 3
    link.close()
