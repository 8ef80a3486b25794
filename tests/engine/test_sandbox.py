"""The sandbox: whatever a job does ends with its child, and the replica goes on."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from serving.engine import sandbox as module
from serving.engine.sandbox import NICENESS, Overrun, Sandbox, Unavailable
from serving.lifecycle.processes import start_ticks
from tests.support.stack import until

TARGET = "tests.support.jobs:load"
CPU_S = 0.1


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    started = Sandbox(TARGET, b"settings ", CPU_S)
    started.start()
    yield started
    await started.stop()


async def test_a_job_is_answered_with_what_the_server_was_loaded_with(sandbox: Sandbox) -> None:
    assert await sandbox.run(b"echo some words") == b"settings some words"


async def test_a_large_job_and_a_large_answer_come_whole(sandbox: Sandbox) -> None:
    words = os.urandom(5 * 2**20)
    assert await sandbox.run(b"echo " + words) == b"settings " + words


async def test_jobs_run_side_by_side_each_in_a_child_of_low_priority(sandbox: Sandbox) -> None:
    answers = await asyncio.gather(*(sandbox.run(b"pids") for _ in range(8)))
    parts = [answer.split() for answer in answers]
    assert len({pid for pid, *_ in parts}) == 8
    assert {tuple(rest) for _, *rest in parts} == {(str(sandbox.pid).encode(), str(NICENESS).encode(), b"0")}


@pytest.mark.parametrize("job", [b"spin", b"crash", b"fill", b"raise"])
async def test_a_job_that_does_not_end_well_is_an_overrun_and_the_next_one_is_well(
    sandbox: Sandbox, job: bytes
) -> None:
    with pytest.raises(Overrun):
        await sandbox.run(job)
    assert await sandbox.run(b"echo ") == b"settings "


async def test_the_bound_is_on_processor_time(sandbox: Sandbox) -> None:
    """However busy the machine is, what a job may compute stays the same."""
    await sandbox.run(b"echo")
    before_s = time.monotonic()
    with pytest.raises(Overrun):
        await sandbox.run(b"spin")
    assert time.monotonic() - before_s >= CPU_S * 0.9


async def test_a_job_that_gets_no_processor_time_is_not_to_blame(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1)
    with pytest.raises(Unavailable):
        await sandbox.run(b"hang")


async def test_the_event_loop_goes_on_while_jobs_spin(sandbox: Sandbox) -> None:
    await sandbox.run(b"echo")
    jobs = [asyncio.create_task(sandbox.run(b"spin")) for _ in range(3)]
    longest_s, last_s = 0.0, time.monotonic()
    while not all(job.done() for job in jobs):
        await asyncio.sleep(0.001)
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
    assert all(isinstance(job.exception(), Overrun) for job in jobs)
    assert longest_s < CPU_S, "a job on the loop would have held it for all of its time"


async def test_too_many_jobs_are_turned_away(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JOBS", 2)
    jobs = [asyncio.create_task(sandbox.run(b"echo")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many"):
        await sandbox.run(b"echo")
    await asyncio.gather(*jobs)


async def test_a_server_that_was_killed_is_replaced(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_S", 0.0)
    job = asyncio.create_task(sandbox.run(b"hang"))
    await until(lambda: sandbox.pid and children_of(sandbox.pid))
    first = sandbox.pid
    assert first is not None
    (child,) = children_of(first)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await job
    await until(lambda: start_ticks(child) is None)
    assert await sandbox.run(b"echo ") == b"settings "
    assert sandbox.pid != first


async def test_a_server_that_cannot_load_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_PATIENCE_S", 0.2)
    broken = Sandbox("tests.support.jobs:nothing", b"", CPU_S)
    broken.start()
    with pytest.raises(Unavailable):
        await broken.run(b"echo")
    await broken.stop()


async def test_stop_leaves_no_process(sandbox: Sandbox) -> None:
    jobs = [asyncio.create_task(sandbox.run(b"hang")) for _ in range(2)]
    await until(lambda: sandbox.pid and len(children_of(sandbox.pid)) == 2)
    pid = sandbox.pid
    assert pid is not None
    children = children_of(pid)
    await sandbox.stop()
    await until(lambda: all(start_ticks(process) is None for process in (pid, *children)))
    await asyncio.gather(*jobs, return_exceptions=True)
    await sandbox.stop()


async def test_it_dies_with_a_replica_that_is_killed() -> None:
    script = (
        "import asyncio\nfrom serving.engine.sandbox import Sandbox\n"
        f"async def main():\n    sandbox = Sandbox({TARGET!r}, b'', 9.0)\n    sandbox.start()\n"
        "    job = asyncio.create_task(sandbox.run(b'hang'))\n"
        "    while sandbox.pid is None: await asyncio.sleep(0.01)\n"
        "    print(sandbox.pid, flush=True)\n    await job\n"
        "asyncio.run(main())"
    )
    replica = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert replica.stdout is not None
    server = int(replica.stdout.readline())
    await until(lambda: children_of(server))
    (child,) = children_of(server)
    replica.kill()
    replica.wait()
    replica.stdout.close()
    await until(lambda: start_ticks(server) is None and start_ticks(child) is None)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


async def test_a_server_for_which_there_is_no_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.sandbox.RESTART_S", 0.01)
    spawn, attempts = Sandbox._spawn, []

    def short_of_memory(sandbox: Sandbox) -> object:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return spawn(sandbox)

    monkeypatch.setattr(Sandbox, "_spawn", short_of_memory)
    sandbox = Sandbox(TARGET, b"settings ", CPU_S)
    sandbox.start()
    try:
        assert await sandbox.run(b"echo ") == b"settings "
    finally:
        await sandbox.stop()
