"""The socket over which a running server is told of another config, and the file that says which one is in force."""

import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.config import Config
from serving.errors import StateError
from serving.lifecycle import control
from serving.lifecycle.control import Apply, Client, InForce, Listener, Report, apply

CONFIG = Config.model_validate(
    {
        "models": [
            {
                "name": "demo",
                "source": "owner/name",
                "pools": [{"name": "cpu", "device": "cpu", "cpus_per_replica": 1.0, "usd_per_hour": 0.1}],
            }
        ]
    },
    context={"base_dir": Path("/")},
)
REQUEST = Apply(CONFIG, "0123456789ab", 60.0)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path)
    yield listener
    listener.close()


def taken(listener: Listener) -> tuple[Apply, Client]:
    while (found := listener.take()) is None:
        os.sched_yield()
    return found


def test_a_request_arrives_whole_and_reports_come_back_until_the_last(listener: Listener, tmp_path: Path) -> None:
    assert listener.take() is None
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(lambda: list(apply(tmp_path, REQUEST)))
        request, client = taken(listener)
        reports = [Report("step", "demo/cpu: updating"), Report("applied", "in force")]
        for report in reports:
            client.tell(report)
        client.close()
        assert request == REQUEST
        assert heard.result() == reports


def test_a_client_that_leaves_disturbs_nobody(listener: Listener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp_path / control.SOCKET))
        connection.sendall(REQUEST.encode())
        _, client = taken(listener)
    for _ in range(3):
        client.tell(Report("step", "nobody listens"))
    client.close()


@pytest.mark.parametrize("said", [b"", b"{}\n", b"nonsense\n", b'{"config": {}, "base": "", "timeout_s": 1}\n'])
def test_what_is_not_understood_is_refused(said: bytes, listener: Listener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp_path / control.SOCKET))
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        assert listener.take() is None
        assert b'"refused"' in connection.makefile("rb").readline()


def test_only_the_user_who_started_the_server_may_tell_it(listener: Listener, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / control.SOCKET).stat().st_mode) == 0o600
    InForce(CONFIG, 1.0).write(tmp_path)
    assert stat.S_IMODE((tmp_path / control.IN_FORCE).stat().st_mode) == 0o600


def test_a_server_that_does_not_listen_is_told_of_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be told of a config"):
        list(apply(tmp_path, REQUEST))


def test_what_is_in_force_can_be_read_and_replaced(tmp_path: Path) -> None:
    assert InForce.read(tmp_path) is None
    for since_s in (1.0, 2.0):
        InForce(CONFIG, since_s).write(tmp_path)
        assert InForce.read(tmp_path) == InForce(CONFIG, since_s)
