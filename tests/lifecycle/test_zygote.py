"""The zygote: what it forks is as if started afresh, ends with its requester, and does not need it any more."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.engine.preload import MODULES
from serving.lifecycle import zygote
from serving.lifecycle.processes import start_ticks
from serving.lifecycle.zygote import Child, Job, ZygoteError
from tests.e2e.server import until

PRELOADED = "xml.dom.minidom"
START_TIMEOUT_S = 20.0


def job(function: str, payload: bytes = b"") -> Job:
    return Job.here(f"tests.support.forked:{function}", payload, "a-child")


def words(child: Child) -> str:
    """What the child says, after its process id."""
    with child.control.makefile() as lines:
        assert int(lines.readline())
        return lines.readline()


def is_gone(pid: int) -> bool:
    return start_ticks(pid) is None


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / zygote.SOCKET


@pytest.fixture
def server(socket_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A zygote that listens, and may still import."""
    process = zygote.start(socket_path, os.getpid(), [PRELOADED])
    until(socket_path.exists, START_TIMEOUT_S, "a zygote")
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def fork(socket_path: Path) -> Iterator[Callable[[Job], Child]]:
    """Asks a zygote; what it forked ends with the test."""
    with contextlib.ExitStack() as children:
        yield lambda job: children.enter_context(contextlib.closing(zygote.fork(socket_path, job)))


@pytest.fixture(params=["forked", "fresh"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Job], Child]]:
    if request.param == "forked":
        request.getfixturevalue("server")
        yield request.getfixturevalue("fork")
        return
    with contextlib.ExitStack() as children:
        yield lambda job: children.enter_context(contextlib.closing(zygote.run_fresh(job)))


def test_a_child_has_the_requesters_environment_and_output_and_its_own_name(
    run: Callable[[Job], Child], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Forked or fresh, it is the same to the requester."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    told: dict[str, Any] = json.loads(words(run(job("describe", b"a payload"))))
    assert told["environment"] == dict(os.environ)
    assert (told["payload"], told["name"], told["threads"]) == ("a payload", "a-child", 1)
    assert "to stdout" in capfd.readouterr().out


def test_a_forked_child_need_not_import_what_the_zygote_has(
    server: "subprocess.Popen[bytes]", fork: Callable[[Job], Child]
) -> None:
    told = json.loads(words(fork(job("describe"))))
    assert told["had_preloaded"]
    assert told["parent"] == server.pid


@pytest.mark.parametrize("signal_number", [None, signal.SIGSTOP])
def test_a_child_is_killed_when_its_requester_lets_go_even_when_it_is_stopped(
    run: Callable[[Job], Child], signal_number: signal.Signals | None
) -> None:
    child = run(job("wait"))
    pid = int(words(child))
    if signal_number is not None:
        os.kill(pid, signal_number)
    child.close()
    until(lambda: is_gone(pid), 5, "the child's end")


def test_what_a_child_forks_ends_with_it(run: Callable[[Job], Child]) -> None:
    child = run(job("fork"))
    pids = [int(word) for word in words(child).split()]
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: all(is_gone(pid) for pid in pids), 5, "both")


def test_a_child_outlives_its_zygote(server: "subprocess.Popen[bytes]", fork: Callable[[Job], Child]) -> None:
    child = fork(job("wait"))
    pid = int(words(child))
    server.kill()
    server.wait()
    assert not is_gone(pid)
    child.close()
    until(lambda: is_gone(pid), 5, "the child's end")


def test_a_child_that_fails_says_so_in_its_output_and_the_zygote_goes_on(
    server: "subprocess.Popen[bytes]", fork: Callable[[Job], Child], capfd: pytest.CaptureFixture[str]
) -> None:
    assert not words(fork(job("fail", b"no luck")))
    assert "ValueError: no luck" in capfd.readouterr().err
    assert words(fork(job("describe")))


def test_a_requester_that_breaks_off_does_no_harm(
    server: "subprocess.Popen[bytes]", socket_path: Path, fork: Callable[[Job], Child]
) -> None:
    for beginning in (b"", b"\0", b"\0\0\1\0half a job"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(str(socket_path))
            connection.sendall(beginning)
    assert words(fork(job("describe")))


def test_without_a_zygote_asking_is_an_error(server: "subprocess.Popen[bytes]", socket_path: Path) -> None:
    with pytest.raises(ZygoteError, match="No such file"):
        zygote.fork(socket_path.with_name("none"), job("wait"))
    server.kill()
    server.wait()
    with pytest.raises(ZygoteError, match="refused"):
        zygote.fork(socket_path, job("wait"))


def test_there_is_one_zygote_and_another_follows_only_when_it_is_dead(
    server: "subprocess.Popen[bytes]", socket_path: Path, fork: Callable[[Job], Child]
) -> None:
    words(fork(job("describe")))
    assert zygote.start(socket_path, os.getpid(), [PRELOADED]).wait(START_TIMEOUT_S) == 0
    assert words(fork(job("describe")))
    server.kill()
    server.wait()
    heir = zygote.start(socket_path, os.getpid(), [])

    def parent() -> int:
        with contextlib.suppress(ZygoteError):
            return int(json.loads(words(fork(job("describe"))))["parent"])
        return 0

    assert until(parent, START_TIMEOUT_S, "the next zygote") == heir.pid
    heir.kill()
    heir.wait()


def test_a_zygote_ends_with_its_owner(socket_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = zygote.start(socket_path, owner.pid, [])
    until(socket_path.exists, START_TIMEOUT_S, "a zygote")
    owner.communicate(b"\n")
    assert process.wait(5) == 0


def test_a_zygote_with_threads_forks_nobody(socket_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever waits for it notices, by the end of the control socket."""
    process = zygote.start(socket_path, os.getpid(), ["tests.support.threaded"])
    until(socket_path.exists, START_TIMEOUT_S, "a zygote")
    with contextlib.suppress(ZygoteError), contextlib.closing(zygote.fork(socket_path, job("wait"))) as child:
        assert not child.control.recv(1)
    assert process.wait(START_TIMEOUT_S) == 1
    assert "importing tests.support.threaded has started threads" in capfd.readouterr().err


@pytest.mark.engine
def test_importing_the_engine_starts_no_thread() -> None:
    code = f"from serving.lifecycle.zygote import preload; preload({MODULES!r})"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **zygote.ENVIRONMENT}, check=True, timeout=120)
