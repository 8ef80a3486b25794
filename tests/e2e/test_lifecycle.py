"""`ballast up` as a person or a service manager uses it: it starts, answers, and leaves nothing, however it ends.

With the scripted engine, because what is tested is everything around it.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from serving.lifecycle.processes import processes_of
from serving.lifecycle.record import ServerRecord
from serving.machine import listen_problem
from serving.ports import free_port
from tests.e2e.server import until

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
CONFIG = """
server: {{state_dir: state, port: {port}, admin_port: {admin_port}, shutdown_grace_s: 5}}
models:
  - name: demo
    source: {source}
    pools: [{{name: cpu, device: cpu, cpus_per_replica: 1, usd_per_hour: 0.1, engine: {{kv_cache_gib: 0.1}}}}]
"""

pytestmark = pytest.mark.timeout(300)


@dataclass
class Up:
    """One `ballast up` at a time, over one state folder."""

    folder: Path
    port: int
    admin_port: int
    process: subprocess.Popen[str] | None = None

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "serving.cli", *words, "--config", str(self.folder / "ballast.yaml")]

    def start(self, engine_args: str = "{}") -> subprocess.Popen[str]:
        with (self.folder / "words").open("w") as words:
            self.process = subprocess.Popen(
                self.command("up", "--engine", "scripted", "--engine-args", engine_args),
                stdout=subprocess.DEVNULL,
                stderr=words,
                text=True,
                cwd=ROOT,
            )
        return self.process

    def words(self) -> str:
        return (self.folder / "words").read_text()

    def until_said(self, phrase: str) -> None:
        def said() -> bool:
            assert self.process is not None
            assert self.process.poll() is None or phrase in self.words(), self.words()
            return phrase in self.words()

        until(said, START_TIMEOUT_S, phrase)

    def runtime_dir(self) -> Path:
        record = ServerRecord.read(self.folder / "state")
        assert record is not None
        return Path(record.runtime_dir)

    def ask(self) -> int:
        body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx.post(url, json=body, timeout=10, trust_env=False).status_code

    def assert_nothing_is_left(self, runtime_dir: Path) -> None:
        assert processes_of(runtime_dir) == set()
        assert not runtime_dir.exists()
        assert not (self.folder / "state" / "server.json").exists()
        assert [listen_problem("127.0.0.1", port) for port in (self.port, self.admin_port)] == [None, None]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path, free_port(), free_port())
    text = CONFIG.format(port=up.port, admin_port=up.admin_port, source=ROOT / "models" / "demo")
    (tmp_path / "ballast.yaml").write_text(text)
    yield up
    if up.process is not None and up.process.poll() is None:
        up.process.send_signal(signal.SIGTERM)
        up.process.wait(timeout=STOP_TIMEOUT_S)


def listeners(pids: set[int]) -> set[str]:
    """Addresses at which any of ``pids`` takes TCP connections, in the kernel's hexadecimal form."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            link = os.readlink(entry) if entry.is_symlink() else ""
            if found := re.fullmatch(r"socket:\[(\d+)\]", link):
                sockets.add(found[1])
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


def test_up_answers_on_loopback_alone_and_ctrl_c_leaves_nothing(up: Up) -> None:
    process = up.start()
    up.until_said("is ready after")
    runtime_dir = up.runtime_dir()
    assert up.ask() == 200
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert listeners(processes_of(runtime_dir)) <= loopback
    status = subprocess.run(up.command("status", "--json"), capture_output=True, text=True, check=True)
    assert json.loads(status.stdout)["ready"] is True
    second = subprocess.run(up.command("up", "--json"), capture_output=True, text=True, check=False)
    assert second.returncode == 4
    assert up.ask() == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=STOP_TIMEOUT_S) == 0
    up.assert_nothing_is_left(runtime_dir)


def test_a_start_that_is_interrupted_leaves_nothing(up: Up) -> None:
    process = up.start()
    up.until_said("Starting Ballast")
    runtime_dir = up.runtime_dir()
    until(lambda: len(processes_of(runtime_dir)) > 3, START_TIMEOUT_S, "Ray's processes")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=STOP_TIMEOUT_S) == 130
    up.assert_nothing_is_left(runtime_dir)


def test_an_engine_that_cannot_start_is_told_in_one_line_and_leaves_nothing(up: Up) -> None:
    process = up.start('{"nonsense": 1}')
    until((up.folder / "state" / "server.json").exists, START_TIMEOUT_S, "the record")
    runtime_dir = up.runtime_dir()
    assert process.wait(timeout=START_TIMEOUT_S) == 3
    assert "demo/cpu could not be started: TypeError: " in up.words()
    assert "nonsense" in (up.folder / "state" / "logs" / "failed-start.log").read_text()
    up.assert_nothing_is_left(runtime_dir)


def test_after_a_kill_the_next_up_clears_away_and_starts_and_down_stops_it(up: Up) -> None:
    killed = up.start()
    up.until_said("is ready after")
    runtime_dir = up.runtime_dir()
    everything = processes_of(runtime_dir)
    killed.kill()
    killed.wait()
    for pid in everything & processes_of(runtime_dir):  # the hard case: nobody is left who could stop in order
        os.kill(pid, signal.SIGSTOP)
    next_up = up.start()
    up.until_said("is ready after")
    assert "Cleared away" in up.words()
    assert processes_of(runtime_dir) == set()
    assert not runtime_dir.exists()
    assert up.ask() == 200
    runtime_dir = up.runtime_dir()
    down = subprocess.run(up.command("down"), capture_output=True, text=True, check=True)
    assert f"process {next_up.pid}" in down.stdout
    assert next_up.wait(timeout=STOP_TIMEOUT_S) == 0
    up.assert_nothing_is_left(runtime_dir)
