"""Faults at planned times of a run: real signals to real processes, which stand for a server's."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.load.arrivals import Surge
from benchmarks.load.mistake import BenchError
from benchmarks.runs import document as documents
from benchmarks.runs.chaos import judge, marks_of
from benchmarks.runs.marks import FORMS, Fault, Mark, Saboteur, Site, parse_fault
from benchmarks.runs.options import Plan
from benchmarks.runs.round import Round
from benchmarks.runs.slo import Slo
from benchmarks.server import Server
from serving.cli import main
from serving.config import load_config
from serving.lifecycle.control import InForce
from serving.lifecycle.processes import start_ticks
from serving.lifecycle.record import ServerRecord
from tests.benchmarks.conftest import GENEROUS, interrupted
from tests.benchmarks.test_rows import row, rows_of

CONFIG = """
server: {{port: {port}, state_dir: {state_dir}}}
models:
  - name: "null"
    source: {folder}
    pools: [{{name: cpu, device: cpu, cpus_per_replica: 1, usd_per_hour: 0.1, replicas: {{min: 1, max: 1}}}}]
"""
REPLICA = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', 'EngineCore'])"


@dataclass
class Ballast:
    """What `ballast bench chaos` sees of a running server: its record, its admin port, a replica with its engine."""

    config: Path
    server: Server
    replica: "subprocess.Popen[bytes]"
    status: dict[str, Any]

    @property
    def engine(self) -> int:
        (pid,) = map(int, Path(f"/proc/{self.replica.pid}/task/{self.replica.pid}/children").read_text().split())
        return pid

    @property
    def state(self) -> str:
        """Of the engine's process: T is stopped."""
        return Path(f"/proc/{self.engine}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def ballast(url: str, tmp_path: Path) -> Iterator[Ballast]:
    replica = subprocess.Popen([sys.executable, "-c", REPLICA])
    one = {"replica": "one", "model": "null", "pool": "cpu", "ready": True, "pid": replica.pid, "load": None}
    status = {"ready": True, "replicas": [one]}

    class Admin(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(status).encode() if self.path == "/admin/status" else b"# nothing\n"
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    admin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    threading.Thread(target=admin.serve_forever, daemon=True).start()
    port, state_dir = int(url.rpartition(":")[2]), tmp_path / "state"
    for folder in (state_dir, tmp_path / "runtime"):
        folder.mkdir(mode=0o700)
    path = tmp_path / "ballast.yaml"
    path.write_text(CONFIG.format(port=port, state_dir=state_dir, folder=tmp_path))
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    runtime_dir = str(tmp_path / "runtime")
    admin_port = admin.server_address[1]
    ServerRecord(os.getpid(), ticks, "127.0.0.1", port, admin_port, runtime_dir, 0.0, str(path)).write(state_dir)
    InForce(load_config(path), 0.0).write(Path(runtime_dir))
    found = Ballast(path, Server(port, admin_port, state_dir), replica, status)
    while not Path(f"/proc/{replica.pid}/task/{replica.pid}/children").read_text():
        time.sleep(0.01)
    yield found
    for pid in (found.engine, replica.pid) if replica.poll() is None else ():
        os.kill(pid, 9)
    replica.wait()
    admin.shutdown()
    admin.server_close()


def chaos(*arguments: str) -> int:
    return main(["bench", "chaos", *arguments])


def test_a_run_has_its_faults_as_marks_with_what_they_did(
    ballast: Ballast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ballast.engine
    out = tmp_path / "run"
    faults = ("--at", "0.6s=stop-engine:200ms", "--at", "1.2s=overload:3x,500ms", "--at", "2.2s=kill-engine")
    load = ("--rate", "40", "--arrivals", "constant", "--duration", "3s", "--slo", "ttft=1h")
    assert chaos("--config", str(ballast.config), *faults, *load, *GENEROUS, "--out", str(out)) == 0
    assert "RECOVERED from 3 of 3 faults" in capsys.readouterr().out
    document = documents.read(out).document
    stop, surge, kill = document["rounds"][0]["marks"]
    assert (stop["name"], surge["name"], kill["name"]) == ("stop-engine:200ms", "overload:3x,500ms", "kill-engine")
    assert (stop["pid"], surge["pid"], kill["pid"]) == (engine, None, engine)
    assert stop["done_s"] >= stop["at_s"] + 0.2
    assert stop["at_s"] >= stop["planned_s"] == 0.6
    assert "replica one" in kill["what"]
    assert kill["before"]["share_in_slo"] == 1.0
    assert document["rounds"][0]["requests"]["num_measured"] == 40 * 3 + 2 * 20
    ballast.replica.wait(10)  # it ends with its engine


def test_ctrl_c_before_there_is_anything_is_an_interrupted_run(
    ballast: Ballast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.runs.chaos.run_round", interrupted)
    given = ("--config", str(ballast.config), "--at", "1s=kill-engine", "--rate", "1")
    assert chaos(*given, "--out", str(tmp_path / "run")) == 130
    assert documents.read(tmp_path / "run").document["status"] == "interrupted"


def test_a_stopped_engine_goes_on_when_the_run_ends(ballast: Ballast, tmp_path: Path) -> None:
    with Saboteur(Site(ballast.server, "null"), [parse_fault("0.01=stop-engine")], lambda _: None) as saboteur:
        saboteur.begin(time.monotonic())
        while saboteur.marks[0].done_s is None:
            time.sleep(0.01)
        while ballast.state != "T":
            time.sleep(0.01)
    while ballast.state == "T":
        time.sleep(0.01)


def test_what_cannot_be_done_is_told_and_fails_the_run(
    ballast: Ballast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ("--at", "0.5s=drain-gateway")
    load = ("--rate", "40", "--duration", "1s", "--slo", "ttft=1h", *GENEROUS)
    assert chaos("--config", str(ballast.config), *gone, *load, "--out", str(tmp_path / "run"), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["chaos"]["num_recovered"] == 0
    assert document["rounds"][0]["marks"][0]["error"] == "no gateway runs"


def test_only_the_server_of_the_config_is_broken(
    ballast: Ballast, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--at", "1s=kill-engine", "--rate", "1")
    assert chaos(*given) == 2
    assert "name the running server's config with --config" in capsys.readouterr().err
    assert chaos("--config", str(ballast.config), "--url", "http://127.0.0.1:1/v1", *given) == 2
    assert "is not the server of" in capsys.readouterr().err
    monkeypatch.setenv("BALLAST_STATE_DIR", str(tmp_path / "another"))
    assert chaos("--config", str(ballast.config), *given) == 2
    assert "no server runs from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "1"), "nothing breaks"),
        (("--rate", "1", "--at", "70s=kill-engine"), "before the end at 60 s"),
        (("--rate", "1", "--at", "5s=kill-engine", "--warmup", "10s"), "after the warm-up's 10 s"),
        (("--concurrency", "1", "--at", "5s=overload:2x,1s"), "needs --rate or --phases"),
        (("--rate", "1", "--at", "5s=kill-engine", "--rounds", "2"), "one round"),
        (("--rate", "1", "--at", "5s=scale:gpu=2"), "0 pools are called gpu; there are cpu"),
        (("--rate", "1", "--at", "5s=apply:none.yaml"), "no such file"),
        (("--rate", "1", "--at", "5s=apply:{config}"), "is the config that the server runs with"),
    ],
)
def test_faults_that_cannot_be_are_refused_before_the_run(
    ballast: Ballast, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(config=ballast.config) for argument in arguments]
    assert chaos("--config", str(ballast.config), *given) == 2
    assert words in capsys.readouterr().err


def test_a_replica_that_has_no_engine_is_told(ballast: Ballast) -> None:
    ballast.status["replicas"] = []
    with pytest.raises(BenchError, match="no replica of null takes requests"):
        Site(ballast.server, "null").check(Fault(1.0, "kill-engine"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10s=kill-engine", Fault(10.0, "kill-engine")),
        ("2m=stop-engine:5s", Fault(120.0, "stop-engine", "5s")),
        ("1.5=scale:cpu=2", Fault(1.5, "scale", "cpu=2")),
        ("1s=apply:a=b.yaml", Fault(1.0, "apply", "a=b.yaml")),
    ],
)
def test_a_fault_is_read(text: str, found: Fault) -> None:
    assert parse_fault(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "kill-engine", "10s=explode", "x=kill-engine", "10s=kill-engine:now", "10s=overload", "10s=overload:x,3s",
        "10s=overload:0x,3s", "10s=overload:3x,", "10s=scale:cpu", "10s=scale:cpu=-1", "10s=stop-engine:soon",
    ],
)  # fmt: skip
def test_a_fault_that_is_none_is_told_in_words(text: str) -> None:
    with pytest.raises(BenchError, match="write"):
        parse_fault(text)


def test_help_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        chaos("--help")
    shown = capsys.readouterr().out
    assert [form for form in FORMS if form not in shown] == []


def test_an_overload_is_part_of_the_schedule() -> None:
    assert parse_fault("40s=overload:3x,10s").surge == Surge(40.0, 10.0, 3.0)


def test_a_fault_without_any_measured_request_was_not_recovered_from(tmp_path: Path) -> None:
    found = Round({}, rows_of(tmp_path, [row(0.0)], after_s=5.0), None, is_interrupted=False)
    marks = marks_of(found, [Mark("kill-engine", 6.0, at_s=6.0, done_s=6.1)], cast(Plan, SimpleNamespace(slo=Slo())))
    assert [mark["recovery_s"] for mark in marks] == [None]
    assert not judge(marks, None)["is_recovered"]


def test_all_have_to_be_recovered_from_and_in_time() -> None:
    well = {"error": None, "done_s": 1.0, "recovery_s": 4.0}
    unknown = well | {"recovery_s": None}
    assert judge([well], None)["is_recovered"]
    assert not judge([well], 3.0)["is_recovered"]
    assert not judge([well, unknown], None)["is_recovered"]
    assert not judge([well, well | {"error": "no gateway"}], None)["is_recovered"]
    assert not judge([well, well | {"done_s": None}], None)["is_recovered"], "a config that is still being applied"
