"""Who is alive, with what load."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.protocol.frames import Kind, OpenHead
from serving.protocol.membership import ReplicaAddress
from serving.router.directory import Directory
from serving.router.policy import choose
from tests.support.peers import fake_replica
from tests.support.stack import SECRET, until

HEAD: OpenHead = {"method": "POST", "path": "/v1/completions", "request_id": "req-1", "model": "demo",
                  "created": 0, "continuable": False, "resume": []}  # fmt: skip


@pytest.fixture
async def directory() -> AsyncIterator[Directory]:
    started = Directory(SECRET)
    yield started
    await started.close()
    await asyncio.sleep(0)


def member(folder: Path, name: str = "r0", model: str = "demo", pool: str = "cpu") -> ReplicaAddress:
    return ReplicaAddress(name, model, pool, f"unix:{folder / name}", version="v1", max_model_len=100, pid=os.getpid())


async def test_a_member_becomes_ready_when_it_has_accepted(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        [known] = directory.replicas("demo")
        assert not known.is_ready
        await replica.accepted()
        await until(lambda: known.is_ready)


async def test_an_update_adds_and_removes_and_leaves_the_rest_connected(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as first, fake_replica(tmp_path / "r1") as second:
        directory.update("demo", "cpu", [member(tmp_path, "r0"), member(tmp_path, "r1")])
        gone, kept = await first.accepted("r0"), await second.accepted("r1")
        await until(lambda: all(replica.is_ready for replica in directory.all()))
        directory.update("demo", "cpu", [member(tmp_path, "r1")])
        assert [replica.address.replica for replica in directory.all()] == ["r1"]
        assert await gone.is_closed()
        kept.load(running=1)
        await until(lambda: directory.all()[0].load)
        assert second.num_connections == 1


async def test_an_update_of_one_pool_leaves_other_pools_alone(tmp_path: Path, directory: Directory) -> None:
    directory.update("demo", "cpu", [member(tmp_path, "r0")])
    directory.update("demo", "cuda", [member(tmp_path, "r1", pool="cuda")])
    directory.update("other", "cpu", [member(tmp_path, "r2", model="other")])
    directory.update("demo", "cpu", [])
    assert [replica.address.replica for replica in directory.all()] == ["r1", "r2"]
    assert [replica.address.replica for replica in directory.replicas("demo")] == ["r1"]


async def test_a_member_that_left_finishes_its_streams(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        peer = await replica.accepted()
        [known] = directory.replicas("demo")
        await until(lambda: known.is_ready)
        stream = known.link.open(HEAD, b"", 1000)
        directory.update("demo", "cpu", [])
        peer.send(Kind.BODY, stream.id, b"rest")
        peer.end(stream.id)
        assert (await stream.read(), await stream.read()) == (b"rest", b"")
        assert await peer.is_closed()


async def test_a_draining_replica_is_not_ready(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        peer = await replica.accepted()
        [known] = directory.replicas("demo")
        await until(lambda: known.is_ready)
        peer.load(draining=True)
        await until(lambda: not known.is_ready)


async def test_a_load_is_kept_with_its_time(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        peer = await replica.accepted()
        [known] = directory.replicas("demo")
        before_s = asyncio.get_running_loop().time()
        peer.load(running=2, waiting=3)
        await until(lambda: known.load)
        assert before_s <= known.load_at_s <= asyncio.get_running_loop().time()
        assert known.pending == 5


async def test_open_streams_count_before_the_replica_reports_them(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        await replica.accepted()
        [known] = directory.replicas("demo")
        await until(lambda: known.is_ready)
        for _ in range(3):
            known.link.open(HEAD, b"", 1000)
        assert known.pending == 3


async def test_waiters_hear_of_membership_readiness_and_load(tmp_path: Path, directory: Directory) -> None:
    async def heard() -> "asyncio.Task[bool]":
        task = asyncio.create_task(directory.changed(5))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    async with fake_replica(tmp_path / "r0") as replica:
        joined = await heard()
        directory.update("demo", "cpu", [member(tmp_path)])
        assert await joined
        accepted = await heard()
        peer = await replica.accepted()
        assert await accepted
        loaded = await heard()
        peer.load()
        assert await loaded
        lost = await heard()
        await peer.close()
        assert await lost


async def test_a_waiter_gives_up(directory: Directory) -> None:
    assert not await directory.changed(0.01)
    assert not await directory.changed(-1)


# ---------------------------------------------------------------------------------------------------------- the policy


@dataclass
class Candidate:
    pending: int = 0
    is_ready: bool = True


def test_none_is_chosen_when_none_is_ready() -> None:
    assert choose([], random.Random(0)) is None
    assert choose([Candidate(is_ready=False)], random.Random(0)) is None


def test_the_less_loaded_of_two_is_chosen() -> None:
    busy, idle = Candidate(5), Candidate(1)
    assert all(choose([busy, idle], random.Random(seed)) is idle for seed in range(20))


def test_one_that_is_not_ready_is_never_chosen() -> None:
    busy, gone = Candidate(5), Candidate(0, is_ready=False)
    assert all(choose([busy, gone], random.Random(seed)) is busy for seed in range(20))


def test_many_replicas_share_the_load_evenly() -> None:
    rng, candidates = random.Random(0), [Candidate() for _ in range(8)]
    for _ in range(800):
        chosen = choose(candidates, rng)
        assert chosen is not None
        chosen.pending += 1
    assert all(95 <= candidate.pending <= 105 for candidate in candidates)
