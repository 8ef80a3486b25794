"""Who is alive, with what load."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.protocol.frames import Kind, OpenHead
from serving.protocol.membership import ReplicaAddress
from serving.router.directory import LOST_S, NUM_STEPS_TO_KNOW, Directory
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


async def test_a_replica_is_not_silent_while_nobody_could_listen(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        peer = await replica.accepted()
        [known] = directory.replicas("demo")
        peer.load()
        await until(lambda: known.load)
        now_s = known.load_at_s
        directory.tick(now_s)
        directory.tick(now_s + 2 * LOST_S)  # this process has stood still for as long
        assert known.is_ready
        for at_s in range(1, 5):
            directory.tick(now_s + 2 * LOST_S + 0.9 * at_s)
        assert not known.is_ready, "from then on it could have been heard"


async def test_a_load_is_kept_with_its_time(tmp_path: Path, directory: Directory) -> None:
    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        peer = await replica.accepted()
        [known] = directory.replicas("demo")
        before_s = asyncio.get_running_loop().time()
        peer.load(running=2, waiting=3, streams=5)
        await until(lambda: known.load)
        assert before_s <= known.load_at_s <= asyncio.get_running_loop().time()
        assert known.num_running == 5


async def test_a_listener_hears_of_membership_readiness_and_load(tmp_path: Path, directory: Directory) -> None:
    heard: list[None] = []
    directory.on_change(lambda: heard.append(None))

    async def hears() -> None:
        await until(lambda: heard)
        heard.clear()

    async with fake_replica(tmp_path / "r0") as replica:
        directory.update("demo", "cpu", [member(tmp_path)])
        await hears()
        peer = await replica.accepted()
        await hears()
        peer.load()
        await hears()
        await peer.close()
        await hears()


async def test_a_listener_is_called_once_per_turn(directory: Directory) -> None:
    heard: list[None] = []
    directory.on_change(lambda: heard.append(None))
    for _ in range(5):
        directory.announce()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(heard) == 1


async def test_a_replica_that_has_just_started_is_as_fast_as_its_pool_was_found_to_be(
    tmp_path: Path, directory: Directory
) -> None:
    seed, measured = (0.02, 0.001, 1e-6, 5e-4), (0.002, 0.0001, 1e-7, 5e-5)
    async with fake_replica(tmp_path / "r0") as old, fake_replica(tmp_path / "r1") as young:
        directory.update("demo", "cpu", [member(tmp_path, "r0"), member(tmp_path, "r1")])
        first, second = await old.accepted("r0"), await young.accepted("r1")
        known = {replica.name: replica for replica in directory.all()}
        second.load(speed=seed, work=(3.0, 0.0, 3.0, 0.0, 0.1))
        await until(lambda: known["r1"].load)
        slow_s = known["r1"].tpot_s
        first.load(speed=measured, work=(5.0, 0.0, 5.0, 0.0, 0.1))
        await until(lambda: known["r0"].load)
        second.load(speed=seed, work=(4.0, 0.0, 4.0, 0.0, 0.1))
        await until(lambda: known["r1"].tpot_s < slow_s)
        assert known["r1"].tpot_s == known["r0"].tpot_s


async def test_what_a_pool_has_measured_outlives_its_replicas(tmp_path: Path, directory: Directory) -> None:
    measured, first_fit = (0.002, 0.0001, 1e-7, 5e-5), (0.004, 0.003, 1e-6, 3e-4)
    async with fake_replica(tmp_path / "r0") as old, fake_replica(tmp_path / "r1") as young:
        directory.update("demo", "cpu", [member(tmp_path, "r0")])
        first = await old.accepted("r0")
        [gone] = directory.all()
        first.load(speed=measured, work=(9 * NUM_STEPS_TO_KNOW, 0.0, 9e3, 0.0, 99.0))
        await until(lambda: gone.load)
        directory.update("demo", "cpu", [member(tmp_path, "r1")])
        second = await young.accepted("r1")
        [known] = directory.all()

        async def speed_after(num_steps: float) -> list[float]:
            second.load(speed=first_fit, work=(num_steps, 0.0, num_steps, 0.0, 5.0))
            await until(lambda: known.load and known.load["work"][0] == num_steps)
            assert known.load
            return list(known.load["speed"])

        assert await speed_after(0.1 * NUM_STEPS_TO_KNOW) == list(measured)
        assert await speed_after(NUM_STEPS_TO_KNOW) == list(first_fit)
