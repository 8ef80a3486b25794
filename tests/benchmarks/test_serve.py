"""``ballast bench serve`` as a user runs it, against a server whose answers are known."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.load.histogram import Histogram
from benchmarks.load.null_server import Manners
from benchmarks.load.workers import Effort, Live
from benchmarks.runs import document as documents
from benchmarks.runs import serve
from benchmarks.runs.live import View
from benchmarks.runs.options import Plan
from benchmarks.runs.round import Round, Watch
from serving.cli import main
from tests.benchmarks.conftest import GENEROUS, served


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """Every tenth request gets a 503; the first two are the probe's."""
    yield from served(Manners(first_s=0.002, step_s=0.001, refused_every=10))


def bench(*arguments: str) -> int:
    return main(["bench", *arguments])


def test_a_run_is_one_document_with_its_rows_beside_it(
    refusing_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    slo = ("--slo", "ttft=1h,objective=0.8")
    arguments = ("--url", refusing_url, "--rate", "100", "--duration", "1s", "--rounds", "2", *slo, "--out", str(out))
    assert bench("serve", *GENEROUS, *arguments) == 0
    assert "SLO HELD" in capsys.readouterr().out
    found = documents.read(out)
    document = found.document
    assert {"commit", "machine", "versions", "command", "load", "slo", "target"} <= set(document)
    assert document["status"] == "complete"
    assert str(tmp_path) not in json.dumps(document)
    first, second = document["rounds"]
    assert first["seed"] != second["seed"]
    for number, each in enumerate(document["rounds"]):
        lines = b"".join(path.read_bytes() for path in found.rows_of(number)).splitlines()
        assert len(lines) == each["num_planned"] == each["requests"]["num_measured"]
        assert each["errors"][0]["status"] == 503
        assert each["errors"][0]["request_ids"][0].startswith("null-")
    assert second["latency"]["itl_ms"]["n"] == 4 * second["requests"]["num_ok"]


def test_more_workers_than_requests_are_not_needed(url: str, tmp_path: Path) -> None:
    arguments = ("--url", url, "--rate", "4", "--arrivals", "constant", "--duration", "0.5s", "--out", str(tmp_path))
    assert bench("serve", *GENEROUS, *arguments, "--workers", "4", "--slo", "ttft=1h") == 0
    [found] = documents.read(tmp_path).document["rounds"]
    assert found["requests"]["num_ok"] == found["num_planned"] < 4


def test_two_runs_have_the_same_shapes_and_other_words(url: str, tmp_path: Path) -> None:
    """Or the second would find the first one's prompts in the server's prefix cache."""
    arguments = ("--url", url, "--rate", "20", "--duration", "0.5s", "--slo", "ttft=1h")
    for name in "ab":
        assert bench("serve", *GENEROUS, *arguments, "--out", str(tmp_path / name)) == 0
    a, b = (documents.read(tmp_path / name).document["load"] for name in "ab")
    assert a.pop("salt") != b.pop("salt")
    assert a == b


def test_a_missed_slo_has_its_exit_code(refusing_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--url",
        refusing_url,
        "--concurrency",
        "3",
        "--requests",
        "40",
        "--out",
        str(tmp_path / "run"),
        "--json",
    )
    assert bench("serve", *GENEROUS, *arguments) == 1
    document = json.loads(capsys.readouterr().out)
    (found,) = document["rounds"]
    assert found["goodput"]["is_slo_held"] is False
    assert found["requests"]["num_error"] == 4


def test_a_generator_that_was_too_slow_fails_the_run(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--url", url, "--rate", "50", "--duration", "1s", "--max-delay-ms", "0.000001", "--workers", "1")
    assert bench("serve", *arguments, "--out", str(tmp_path / "run")) == 3
    output = capsys.readouterr()
    assert "the load generator was the bottleneck" in output.err
    assert "NOT VALID" in output.out
    assert documents.read(tmp_path / "run").document["status"] == "generator was the bottleneck"


def test_ctrl_c_keeps_what_there_is_and_says_so(url: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "serving.cli", "bench", "serve", "--url", url, "--rate", "50", "--duration", "1h",
               *GENEROUS, "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not any(path.stat().st_size for path in out.glob("round-0/*.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted: kept" in output
    document = documents.read(out).document
    assert document["status"] == "interrupted"
    assert document["rounds"][0]["requests"]["num_ok"] > 0


def test_ctrl_c_while_a_round_begins_keeps_those_before_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = serve.run_round

    def run_round(plan: Plan, folder: Path, number: int, rate_per_s: float | None, watch: Watch) -> Round:
        if number:
            raise KeyboardInterrupt
        return real(plan, folder, number, rate_per_s, watch)

    monkeypatch.setattr(serve, "run_round", run_round)
    arguments = ("--url", url, "--rate", "20", "--duration", "0.5s", "--rounds", "2", "--out", str(tmp_path))
    assert bench("serve", *GENEROUS, *arguments) == 130
    document = documents.read(tmp_path).document
    assert (document["status"], len(document["rounds"])) == ("interrupted", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of --rate, --concurrency"),
        (("--rate", "1", "--concurrency", "2"), "exclude each other"),
        (("--rate", "1", "--requests", "2"), "--requests is for a closed loop"),
        (("--concurrency", "1", "--max-concurrency", "2"), "open loop"),
        (("--rate", "1", "--burstiness", "2"), "--arrivals gamma"),
        (("--phases", "1s@1", "--duration", "60s"), "--duration does nothing beside --phases"),
        (("--concurrency", "1", "--requests", "2", "--duration", "60s"), "--duration does nothing beside --requests"),
        (("--concurrency", "1", "--arrivals", "poisson"), "--arrivals does nothing beside --concurrency"),
        (("--trace", "none.csv", "--arrivals", "gamma"), "--arrivals does nothing beside --trace"),
        (("--trace", "none.csv", "--prompt-tokens", "128"), "--prompt-tokens does nothing beside --trace"),
        (("--trace", "none.csv", "--lengths-from", "x.csv"), "--lengths-from does nothing beside --trace"),
        (("--rate", "1", "--lengths-from", "x.csv", "--output-tokens", "9"), "does nothing beside --lengths-from"),
        (("--rate", "1", "--think", "2s"), "give --turns too"),
        (("--rate", "1", "--slo", "p99=1s"), "no part of an SLO"),
        (("--rate", "1", "--tools-share", "2"), "a share is between 0 and 1"),
        (("--rate", "1", "--prompt-tokens", "many"), "'many' is no length"),
        (("--phases", "x"), "is no phase"),
        (("--trace", "none.csv"), "none.csv"),
        (("--rate", "1", "--metrics-url", "http://127.0.0.1:1/metrics"), "no metrics at"),
    ],
)
def test_a_users_mistake_is_told_in_words(
    url: str, tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("serve", "--url", url, "--out", str(tmp_path / "run"), *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_trace_without_a_rate_is_not_resampled(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n7,1,1\n")
    trace = ("--trace", str(tmp_path / "t.csv"), "--rate", "1")
    assert bench("serve", "--url", url, "--out", str(tmp_path / "run"), *trace) == 2
    assert "come at the same time" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [("--rate", "-1"), ("--rate", "x"), ("--rounds", "0"), ("--seed", "-1"), ("--extra", "[]"), ("--duration", "3y")],
)
def test_an_option_that_is_wrong_is_named(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        serve.main(option)
    assert stopped.value.code == 2
    assert f"argument {option[0]}" in capsys.readouterr().err


def test_no_server_and_a_folder_in_use_are_told(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("serve", "--url", "http://127.0.0.1:1", "--rate", "1") == 2
    assert "no server answers" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")
    assert bench("serve", "--url", url, "--rate", "1", "--out", str(tmp_path)) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_told_before_the_run(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("serve", "--url", url, "--rate", "1", "--out", "/proc/self") == 2  # where even root makes no file
    assert "/proc/self: nothing can be written there" in capsys.readouterr().err


def test_help_lists_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench("--help")
    shown = capsys.readouterr().out
    assert [name for name in ("serve", "sweep", "soak", "compare", "report") if name not in shown] == []


def test_the_live_view_shows_progress_rates_percentiles_and_errors() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, _environ={"TERM": "xterm"})
    state = Live(100, started_s=time.monotonic() - 10.0)
    view = View("5 requests/s", 20.0, console)
    view(state)
    state.add({"num_sent": 50, "num_ended": 40, "num_failed": 2, "num_events": 9, "num_tokens": 9,
               "ttft": _filled(12_000).sparse(), "itl": Histogram().sparse(), "delays_us": [100]})  # fmt: skip
    view(state)
    console.print(view.render(state))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("5 requests/s", "2 failed", "10 under way", "s left", "12.0 ms", "Ctrl-C"):
        assert words in shown


def _filled(value_us: int) -> Histogram:
    histogram = Histogram()
    histogram.add([value_us])
    return histogram


def test_a_generators_lateness_is_a_complaint_only_where_it_counts() -> None:
    late = Effort(2, 1.0, 50.0, 3.0, 0.4)
    assert "dispatch delay" in str(late.complaint(20.0))
    assert late.complaint(20.0, counts_delay=False) is None
    assert "lag" in str(Effort(2, 1.0, 1.0, 30.0, 1.0).complaint(20.0, counts_delay=False))
    assert Effort(2, 1.0, 1.0, 1.0, 1.0).complaint(20.0) is None
