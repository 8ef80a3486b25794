"""A replica's engine in a process of its own: it serves, ends when it is told to, and tells of its end."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.lifecycle import zygote
from serving.lifecycle.processes import start_ticks
from serving.protocol.frames import Kind
from serving.replica import host as module
from serving.replica.host import ForkedHost
from serving.replica.options import ReplicaOptions
from tests.support.peers import GatewayPeer
from tests.support.stack import SECRET, chat, until


@pytest.fixture
def options(tmp_path: Path) -> ReplicaOptions:
    return ReplicaOptions(
        model="demo", served_names=("demo",), pool="cpu", source="none", engine="scripted", runtime_dir=str(tmp_path),
        secret=b"secret", drain_s=1.0, watchdog_s=60.0, version="v1", log_level="info",
        log_path=str(tmp_path / "log.jsonl"), grammar_compile_s=1.0, is_forked=True,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def zygotes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """What was started as a zygote. It imports little, and ends with the test."""
    monkeypatch.setattr(module, "MODULES", ("serving.replica.host",))
    started: list[subprocess.Popen[bytes]] = []
    start = zygote.start

    def noted(*arguments: object) -> "subprocess.Popen[bytes]":
        started.append(start(*arguments))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(zygote, "start", noted)
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
async def host(options: ReplicaOptions) -> AsyncIterator[ForkedHost]:
    forked = ForkedHost(options, "r1")
    yield forked
    await forked.stop()


async def test_it_serves_from_another_process_and_stops_when_told(host: ForkedHost, options: ReplicaOptions) -> None:
    served = await host.start()
    assert served.pid != os.getpid()
    assert served.address == f"unix:{options.runtime_dir}/r1.sock"
    _, writer = await asyncio.open_unix_connection(served.address.removeprefix("unix:"))
    writer.close()
    assert not host.dead
    await host.stop()
    await until(lambda: start_ticks(served.pid) is None)
    assert host.dead


async def test_it_shares_our_session_and_not_our_group(host: ForkedHost) -> None:
    """Linux shares the CPUs between sessions first; Ctrl-C goes to a group."""
    served = await host.start()
    assert os.getsid(served.pid) == os.getsid(0)
    assert os.getpgid(served.pid) != os.getpgid(0)


async def test_the_second_of_a_node_is_forked_from_the_same_zygote(
    host: ForkedHost, options: ReplicaOptions, zygotes: list["subprocess.Popen[bytes]"]
) -> None:
    await host.start()
    second = ForkedHost(options, "r2")
    await second.start()
    assert len(zygotes) == 1
    await second.stop()


async def test_it_tells_of_its_end_however_it_comes(host: ForkedHost) -> None:
    served = await host.start()
    watch = asyncio.create_task(host.watch())
    os.kill(served.pid, signal.SIGKILL)
    await watch
    assert host.dead


async def test_one_that_cannot_start_says_why(options: ReplicaOptions, capfd: pytest.CaptureFixture[str]) -> None:
    broken = ForkedHost(replace(options, engine_args={"nonsense": 1}), "r1")
    with pytest.raises(RuntimeError, match=r"TypeError: .*'nonsense'"):
        await broken.start()
    await broken.stop()
    assert "TypeError" in capfd.readouterr().err, "the whole story is in the replica's output"


async def test_when_no_zygote_can_be_had_it_starts_afresh(
    host: ForkedHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so: starts are slow until that is put right."""
    monkeypatch.setattr(module, "MODULES", ("tests.support.threaded",))
    served = await host.start()
    assert start_ticks(served.pid) is not None
    assert "could not be forked" in caplog.text


async def test_told_by_a_signal_to_end_it_finishes_what_it_has(options: ReplicaOptions) -> None:
    slow = replace(options, secret=SECRET, drain_s=30.0, engine_args={"step_s": 0.01})
    host = ForkedHost(slow, "r1")
    served = await host.start()
    peer = await GatewayPeer.accepted(Path(served.address.removeprefix("unix:")))
    peer.open(1, chat(max_tokens=30, stream=True))
    await peer.read_kind(Kind.PIECE, Kind.BODY)
    os.kill(served.pid, signal.SIGTERM)
    while True:
        _, _, payload = await peer.read_kind(Kind.LOAD)
        if json.loads(payload)["draining"]:
            break
    kind, _, usage = await peer.read_end()
    assert (kind, usage["output_tokens"]) == (Kind.END, 30)
    await host.watch()
    assert host.dead
    await peer.close()
    await host.stop()
