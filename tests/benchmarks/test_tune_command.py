"""`ballast tune` as a user runs it, over servers whose capacity is known: what it writes, resumes and refuses."""

import contextlib
import json
import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.calibrate import Calibration, HeldOut
from benchmarks.runs import sweep
from benchmarks.runs.options import Plan
from benchmarks.runs.round import Round
from benchmarks.runs.summary import summarise
from benchmarks.runs.watcher import Source
from benchmarks.server import RunningServer
from benchmarks.tune import bench, command
from serving.cli import main
from serving.config import load_config
from serving.router.prediction import StepModel
from tests.benchmarks.test_rows import row, rows_of

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--slo",
    "ttft=1s,objective=0.95",
    "--duration",
    "1s",
    "--warmup",
    "1ms",
    "--start-rate",
    "8",
    "--rounds",
    "2",
)
CANDIDATES = ("--grid", "--try", "engine.max_num_seqs=128,7")


@dataclass
class Fleet:
    """Servers that carry more requests the more sequences they run; with seven they do not start, with nine they do not
    stop."""

    port: int
    started: list[int] = field(default_factory=list)
    reason: str = "seven"
    """Why a server with seven does not start."""
    before_round: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def running(self, config: Mapping[str, Any], *options: str) -> Iterator[RunningServer]:
        self.started.append(config["models"][0]["pools"][0]["engine"]["max_num_seqs"])
        if self.started[-1] == 7:
            raise RuntimeError(
                f"the server did not get ready:\nballast: ballast-demo/cpu could not be started: {self.reason}"
            )
        process = SimpleNamespace(pid=os.getpid())
        yield RunningServer(self.port, 1, Path(), process)  # type: ignore[arg-type]
        if self.started[-1] == 9:
            raise subprocess.TimeoutExpired("ballast up", 90.0)

    def run_round(self, plan: Plan, folder: Path, number: int, rate_per_s: float, watch: object) -> Round:
        self.before_round()
        capacity_per_s = 20.0 * math.sqrt(self.started[-1] / 64)
        share = 1.0 / (1.0 + math.exp(40.0 * (math.log(rate_per_s) - math.log(capacity_per_s))))
        late = round(200 * (1.0 - share))
        part = folder / f"round-{number}"
        part.mkdir()
        rows = rows_of(
            part, [row(0.01 * at, first_token_s=0.01 * at + (9.0 if at * 7 % 200 < late else 0.1)) for at in range(200)]
        )
        document = {
            "round": number, "rate_per_s": rate_per_s, "seed": number, "generator": {"complaint": None},
            "timeline": [], "server": {}, "files": [f"round-{number}/requests-0.jsonl"],
            **summarise(rows, plan.slo, number),
        }  # fmt: skip
        return Round(document, rows, None, is_interrupted=False)


async def calibrate(server: RunningServer, model: str, pool: str) -> Calibration:
    found = StepModel(0.005, 2e-5, 4e-7, 6e-5, 2048, 64, 100_000)
    return Calibration(model, pool, found, (HeldOut(64, 8, 0.01, 0.011, 0.1, 0.12),))


@pytest.fixture
def fleet(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    made = Fleet(int(url.rpartition(":")[2]))
    monkeypatch.setattr(bench, "running", made.running)
    monkeypatch.setattr(bench, "make_plan", _plan_of(monkeypatch))
    monkeypatch.setattr(sweep, "run_round", made.run_round)
    monkeypatch.setattr(command, "calibrate", calibrate)
    text = (ROOT / "ballast.yaml").read_text().replace("models/demo", str(ROOT / "models" / "demo"))
    (tmp_path / "ballast.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return made


def _plan_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """The real one, of a server without metrics."""
    monkeypatch.setattr(Source, "check", lambda self: None)
    return bench.make_plan


def tune(*arguments: str) -> int:
    return main(["tune", "-c", "ballast.yaml", *OPTIONS, *arguments])


def test_the_winner_is_written_with_its_evidence_and_its_speed(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(*CANDIDATES, "--out", "out") == 0
    assert "max_num_seqs 128 costs" in " ".join(capsys.readouterr().out.split())
    document = json.loads((tmp_path / "out" / "tune.json").read_text())
    result = document["result"]
    assert result["winner"] == {"engine.max_num_seqs": 128}
    assert result["ratio"]["value"] == pytest.approx(1 / math.sqrt(2), rel=0.06)
    assert {each["dropped"] for each in result["candidates"]} == {None, "ballast-demo/cpu could not be started: seven"}
    assert str(tmp_path) not in json.dumps(document)
    assert document["command"].startswith("ballast tune")
    [pool] = load_config(tmp_path / "ballast.tuned.yaml").models[0].pools
    assert pool.engine.max_num_seqs == 128
    assert pool.speed is not None
    assert pool.speed.step_s == 0.005
    assert "# Tuned by `ballast tune`" in (tmp_path / "ballast.tuned.yaml").read_text()
    main(["check", "--config", "ballast.tuned.yaml"])
    assert "tuned ballast-demo/cpu on 20" in capsys.readouterr().out


def test_a_server_that_does_not_stop_costs_its_candidate_and_not_the_run(fleet: Fleet, tmp_path: Path) -> None:
    assert tune("--grid", "--try", "engine.max_num_seqs=9,128", "--out", "out", "--json") == 0
    result = json.loads((tmp_path / "out" / "tune.json").read_text())["result"]
    assert result["winner"] == {"engine.max_num_seqs": 128}
    assert "its server did not stop within 90 s and was killed" in {each["dropped"] for each in result["candidates"]}


def test_a_run_that_was_stopped_keeps_what_it_has_and_goes_on_without_measuring_it_again(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_at_the_last() -> None:
        if fleet.started[-1] == 128:
            os.kill(os.getpid(), signal.SIGTERM)

    fleet.before_round = stop_at_the_last
    assert tune(*CANDIDATES, "--out", "out") == 130
    assert "--resume out" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "tune.json").read_text())["status"] == "interrupted"
    fleet.before_round = lambda: None
    fleet.started.clear()
    assert tune(*CANDIDATES, "--resume", "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert fleet.started.count(64) == 2  # both of its laps; its short visit was known
    assert document["status"] == "complete"
    fleet.started.clear()
    assert tune(*CANDIDATES, "--resume", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"] == document["result"]
    assert fleet.started == []


def test_a_reason_in_brackets_is_shown_as_it_is(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.reason = "no such option [/b]"
    assert tune("--grid", "--try", "engine.max_num_seqs=7", "--out", "out") == 1
    assert "dropped, ballast-demo/cpu could not be started: no such option [/b]" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_that_was_stopped_before_it_measured_anything_says_so_as_json(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.before_round = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert tune(*CANDIDATES, "--out", "out", "--json") == 130
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["result"]) == ("interrupted", None)


def test_help_has_the_defaults_of_a_tuning() -> None:
    assert "default: 10s" in command.parser().format_help()


def test_ctrl_c_is_heard_also_by_a_job_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    monkeypatch.setattr(command, "main", lambda _: heard.append(signal.getsignal(signal.SIGINT)) or 0)
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(["tune"]) == 0
    finally:
        signal.signal(signal.SIGINT, former)
    assert heard == [signal.default_int_handler]


def test_nothing_is_written_where_nothing_is_cheaper(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune("--grid", "--try", "engine.max_num_seqs=32", "--out", "out") == 1
    assert "max_num_seqs 32" in capsys.readouterr().out
    assert not (tmp_path / "ballast.tuned.yaml").exists()


def test_without_a_bound_it_is_the_configs_own(fleet: Fleet, tmp_path: Path) -> None:
    candidate = ("--grid", "--try", "engine.max_num_seqs=32", "--out", "out")
    assert main(["tune", "-c", "ballast.yaml", *OPTIONS[2:], *candidate]) == 1
    own = load_config(tmp_path / "ballast.yaml").models[0].slo
    held = json.loads((tmp_path / "out" / "tune.json").read_text())["question"]["slo"]
    assert (held["ttft_s"], held["tpot_s"], held["objective"]) == (own.ttft_s, own.tpot_s, own.objective)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--grid",), "--try engine.max_num_seqs"),
        (("--budget-min", "0"), "--budget-min"),
        (("--slo", "objective=0.9"), "nothing to hold"),
        (("--keep", "engine.seed"), "it would not be tried anyway"),
        (("--resume", "nowhere"), "cannot be read"),
        (("--write", "elsewhere/tuned.yaml"), "name a file beside it"),
        (("--model", "other"), "there is no model other"),
        (("--grid", "--try", "engine.max_num_seqs=7", "-c", "seven.yaml"), "could not be started: seven"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    fleet: Fleet, tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seven = (tmp_path / "ballast.yaml").read_text().replace("max_num_seqs: 64", "max_num_seqs: 7")
    (tmp_path / "seven.yaml").write_text(seven)
    assert tune(*arguments) == 2
    assert words in capsys.readouterr().err


def test_a_run_about_something_else_is_not_gone_on_with(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune("--grid", "--try", "engine.max_num_seqs=32", "--out", "out", "--json")
    assert tune("--grid", "--try", "engine.max_num_seqs=32", "--prompt-tokens", "9", "--resume", "out") == 2
    assert "load differ" in capsys.readouterr().err
    assert tune("--grid", "--try", "engine.max_num_seqs=32", "--out", "out") == 2
    assert "go on with it by --resume" in capsys.readouterr().err
