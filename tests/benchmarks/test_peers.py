"""``ballast bench peers``: who is measured, what a ratio says, and what becomes of a server that does not start."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import processes
from benchmarks.compare_check import started as null_server
from benchmarks.load.mistake import BenchError, GeneratorTooSlow
from benchmarks.load.null_server import Manners
from benchmarks.load.prompts import Speech
from benchmarks.load.target import Target
from benchmarks.peers import command, environments, page
from benchmarks.peers.contenders import CONTENDERS, Contender, Setting, flags
from benchmarks.peers.environments import OURS, PROXIES
from benchmarks.peers.launch import PeerError, Server, started
from benchmarks.peers.ratios import (
    Case,
    Measured,
    Turn,
    ahead_of_ballast,
    judge,
    ratio,
    summarise,
    tokens_by_block,
    unknown,
)
from benchmarks.runs import document as documents
from serving.cli import main
from serving.lifecycle.processes import start_ticks
from serving.ports import free_port
from tests.benchmarks.test_rows import FAILED, row, rows_of

ROOT = Path(__file__).parent.parent.parent


def test_every_engine_gets_the_settings_of_the_config_and_none_of_ballasts_own_parts() -> None:
    setting = Setting.of(ROOT / "ballast.yaml")
    found = setting.engine_args()
    assert (found["max_num_seqs"], found["enforce_eager"], found["kv_cache_memory_bytes"]) == (64, True, 2**30)
    assert found.keys().isdisjoint({"worker_cls", "additional_config", "distributed_executor_backend"})
    environ = setting.engine_environ()
    assert (environ["OMP_NUM_THREADS"], environ["VLLM_PLUGINS"], environ["HF_HUB_OFFLINE"]) == ("1", "", "1")


def test_a_config_without_a_cpu_pool_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "ballast.cuda.yaml").read_text()
    (tmp_path / "cuda.yaml").write_text(text)
    with pytest.raises(BenchError, match="no CPU pool"):
        Setting.of(tmp_path / "cuda.yaml")


def test_engine_arguments_become_vllms_command_line() -> None:
    args = {"max_num_seqs": 64, "enforce_eager": True, "enable_prefix_caching": False, "override": {"a": 1}}
    assert flags(args) == [
        "--max-num-seqs", "64", "--enforce-eager", "--no-enable-prefix-caching", "--override", '{"a": 1}',
    ]  # fmt: skip


def test_peers_are_chosen_by_name_and_what_they_stand_before_is_started_first() -> None:
    assert command.chosen("litellm, ray-llm") == ["ray-llm", "litellm"]
    assert command.with_needs(["ballast", "litellm"]) == ["ballast", "vllm", "litellm"]
    for text, what in (("litelm", "no peer 'litelm'"), ("ballast", "no peer 'ballast'"), ("", "names nobody")):
        with pytest.raises(BenchError, match=what):
            command.chosen(text)


def test_a_concurrency_that_is_no_number_is_refused() -> None:
    with pytest.raises(BenchError, match="--concurrency"):
        command.chosen_cases(command.parser().parse_args(["--concurrency", "1,x"]))


def test_each_contender_has_one_turn_a_round_and_is_first_in_one() -> None:
    rounds = [command.in_turn(["a", "b", "c", "d"], number) for number in range(4)]
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in rounds)
    assert len({tuple(order) for order in rounds}) == 4
    assert {order[0] for order in rounds[::2]} == {"a", "c"}
    assert {order[0] for order in rounds[1::2]} == {"a", "c"}


# -------------------------------------------------------------------------------------------------------------- ratios


def round_of(folder: Path, slowness: float, seed: int) -> Turn:
    """A closed loop of one client: each request follows the one before."""
    rng = np.random.default_rng(seed)
    at_s, lines = 0.0, []
    for _ in range(120):
        first_s, span_s = (part * slowness * float(np.exp(rng.normal(0.0, 0.05))) for part in (0.02, 0.06))
        ends = {"first_token_s": at_s + first_s, "last_token_s": at_s + first_s + span_s}
        lines.append(row(at_s, **ends, end_s=at_s + first_s + span_s))
        at_s += first_s + span_s
    folder.mkdir(parents=True, exist_ok=True)
    return Turn.of(rows_of(folder, lines), 0.0, at_s, cpu_s=0.001 * 480)


def sides(folder: Path, factor: float) -> tuple[list[Turn], list[Turn]]:
    """Five rounds in which the machine is up to three times slower, which both sides of a round share."""
    weather = (1.0, 3.0, 1.5, 2.0, 1.2)
    ours = [round_of(folder, slow, 2 * number) for number, slow in enumerate(weather)]
    theirs = [round_of(folder, slow * factor, 2 * number + 1) for number, slow in enumerate(weather)]
    return ours, theirs


def test_what_slows_a_whole_round_is_not_in_the_interval(tmp_path: Path) -> None:
    ours, theirs = sides(tmp_path, 1.1)
    for metric, expected in (("output_tokens_per_s", 1 / 1.1), ("ttft_p50_ms", 1.1), ("tpot_p50_ms", 1.1)):
        found = ratio(ours, theirs, metric)
        assert found.low < expected < found.high
        assert found.high - found.low < 0.2
    assert ratio(ours, theirs, "output_tokens_per_s").judgement == "behind"


def test_the_same_server_twice_is_even(tmp_path: Path) -> None:
    ours, theirs = sides(tmp_path, 1.0)
    assert {ratio(ours, theirs, metric).judgement for metric in ("output_tokens_per_s", "ttft_p50_ms")} == {"even"}


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("output_tokens_per_s", 1.01, 1.2, "ahead"), ("output_tokens_per_s", 0.8, 0.99, "behind"),
        ("ttft_p50_ms", 0.8, 0.99, "ahead"), ("ttft_p50_ms", 1.01, 1.2, "behind"), ("ttft_p50_ms", 0.9, 1.1, "even"),
        ("ttft_p50_ms", float("nan"), float("nan"), "unknown"),
    ],
)  # fmt: skip
def test_more_is_better_for_rates_and_less_for_times(metric: str, low: float, high: float, expected: str) -> None:
    assert judge(metric, low, high) == expected


def test_a_ratio_is_of_the_rounds_that_both_were_measured_in(tmp_path: Path) -> None:
    case = Case("greedy", 1)
    measured = [
        Measured("ballast", case, number, round_of(tmp_path, slow, number)) for number, slow in ((0, 1.0), (1, 3.0))
    ]
    failed = rows_of(tmp_path, [row(0.1 * at, **FAILED) for at in range(9)])
    measured.append(Measured("vllm", case, 1, round_of(tmp_path, 1.5, 7)))
    measured.append(Measured("litellm", case, 1, Turn.of(failed, 0.0, 1.0, 0.1)))
    ballast, fast, broken = summarise(measured)
    assert (ballast["num_rounds"], ballast["ratios"], ballast["cpu_us_per_token"]) == (2, {}, 1000.0)
    assert fast["ratios"]["output_tokens_per_s"]["value"] == pytest.approx(2.0, rel=0.05)
    assert (broken["num_ok"], broken["num_failed"], broken["ratios"]) == (0, 9, {})
    assert ahead_of_ballast([ballast, fast, broken]) == [
        "vllm in output_tokens_per_s at C=1 (greedy)", "vllm in ttft_p50_ms at C=1 (greedy)",
    ]  # fmt: skip


def test_a_round_without_an_answer_counts_on_neither_side(tmp_path: Path) -> None:
    case = Case("greedy", 1)
    silent = Turn.of(rows_of(tmp_path, [row(0.1 * at, **FAILED) for at in range(9)]), 0.0, 1.0, 0.1)
    measured = [Measured("ballast", case, number, round_of(tmp_path, 1.0, number)) for number in (0, 1)]
    measured += [Measured("vllm", case, 0, silent), Measured("vllm", case, 1, round_of(tmp_path, 1.0, 7))]
    ballast, vllm = summarise(measured)
    assert (vllm["num_rounds"], vllm["num_silent_rounds"]) == (2, 1)
    assert vllm["output_tokens_per_s"] == pytest.approx(ballast["output_tokens_per_s"], rel=0.1)
    assert not unknown([ballast, vllm])


def test_nobody_is_ahead_only_where_that_was_seen(tmp_path: Path) -> None:
    case = Case("greedy", 1)
    failed = Turn.of(rows_of(tmp_path, [row(0.1 * at, **FAILED) for at in range(9)]), 0.0, 1.0, 0.1)
    alone = summarise([Measured("ballast", case, 0, round_of(tmp_path, 1.0, 0))])
    assert unknown(alone) == ["no peer was measured beside Ballast"]
    dead = summarise([Measured("ballast", case, 0, failed), Measured("vllm", case, 0, round_of(tmp_path, 1.0, 0))])
    assert unknown(dead) == ["Ballast answered nothing at C=1 (greedy)"]


def test_a_peer_that_cannot_be_judged_is_told_also_beside_one_that_can(tmp_path: Path) -> None:
    case = Case("greedy", 1)
    failed = Turn.of(rows_of(tmp_path, [row(0.1 * at, **FAILED) for at in range(9)]), 0.0, 1.0, 0.1)
    measured = [Measured(name, case, 0, round_of(tmp_path, 1.0, 0)) for name in ("ballast", "vllm")]
    summary = summarise([*measured, Measured("litellm", case, 0, failed)])
    assert unknown(summary) == ["litellm was not measured well enough at C=1 (greedy)"]


def test_answers_of_one_token_have_no_tpot_and_are_printed_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("greedy", 1)
    single = {"itl_us": [], "output_tokens": 1}
    lines = [row(at_s, **single, last_token_s=at_s + 0.1) for at_s in (0.02 * number for number in range(120))]
    turn = Turn.of(rows_of(tmp_path, lines), 0.0, 2.4, 0.1)
    summary = summarise([Measured(name, case, 0, turn) for name in ("ballast", "vllm")])
    command._print(summary, {})
    assert "vllm" in capsys.readouterr().out
    *_, of_vllm = page.lines({"summary": summary, "missing": {}})
    assert of_vllm.split(" | ")[6:8] == ["-", "-"]


def test_a_process_that_ends_meanwhile_takes_no_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(command, "_SETTLE_S", 0.0)
    monkeypatch.setattr(command, "_IDLE_S", 0.001)
    monkeypatch.setattr(processes, "children", lambda _: [ended.pid])
    assert command._idle_cores() == 0.0


def test_tokens_count_when_they_arrive_while_all_clients_are_at_work(tmp_path: Path) -> None:
    """Answers of four tokens, 20 ms apart: one from before the window, one within, one that outlasts it, one failed."""
    lines = [row(at_s) for at_s in (0.85, 1.5, 1.87)] + [row(1.2, **FAILED)]
    found = tokens_by_block(rows_of(tmp_path, sorted(lines, key=lambda line: line["intended_s"])), 1.0, 2.0)
    assert found.sum() == 1 + 4 + 2
    assert found.nonzero()[0].tolist() == [0, 18, 19, 29]
    turn = Turn.of(rows_of(tmp_path, lines), 1.0, 2.0, 0.1)
    assert (len(turn.rows), turn.rows.itl_row.tolist()) == (3, [1, 1, 1, 2, 2, 2])


def test_the_page_has_a_row_per_load_and_contender_and_marks_who_is_ahead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios = {
        metric: {"value": 1.25, "ci95": ci95, "judgement": judgement}
        for metric, ci95, judgement in (
            ("output_tokens_per_s", [1.1, 1.4], "ahead"),
            ("ttft_p50_ms", [0.9, 1.4], "even"),
            ("tpot_p50_ms", None, "unknown"),
        )
    }
    figures = {"output_tokens_per_s": 1234.5, "ttft_p50_ms": 45.67, "tpot_p50_ms": 8.0, "cpu_us_per_token": None}
    row_ = {"contender": "vllm", "mode": "sampled", "concurrency": 32, **figures, "num_failed": 0, "ratios": ratios}
    (tmp_path / "peers.json").write_text(json.dumps({"summary": [row_], "missing": {"litellm": "not installed"}}))
    assert page.main([str(tmp_path / "peers.json")]) == 0
    printed = capsys.readouterr().out
    expected = "| 32, sampled | vllm | 1,234 | **1.25 (1.10–1.40)** | 45.7 | 1.25 (0.90–1.40) | 8 | 1.25 ? | - | 0 |"
    assert expected in printed.splitlines()
    assert printed.endswith("Not measured: litellm: not installed\n")


# -------------------------------------------------------------------------------------------------------------- servers


def test_a_server_that_ends_while_starting_says_why_and_names_no_folder() -> None:
    code = "import sys; print('cannot open', '/srv/data/x.bin'); sys.exit(7)"
    server = started([sys.executable, "-c", code], {}, Speech("m", 0), free_port())
    with pytest.raises(PeerError, match=r"exit code 7 while starting: cannot open x\.bin"):
        server.__enter__()


def test_nothing_that_a_server_has_started_outlives_it(tmp_path: Path) -> None:
    port, note = free_port(), tmp_path / "pid"
    script = f'sleep 600 & echo $! > {note}; exec "$0" "$@"'
    command_ = [sys.executable, "-m", "benchmarks.load.null_server", "--port", str(port)]
    with started(["/bin/sh", "-c", script, *command_], {}, Speech("null", 0), port) as server:
        assert server.target.url == f"http://127.0.0.1:{port}/v1"
        child = int(note.read_text())
        assert start_ticks(child) is not None
    assert start_ticks(child) is None


def test_a_peer_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "_ROOT", tmp_path)
    for ask in (lambda: PROXIES.version("litellm"), lambda: PROXIES.program("litellm"), lambda: PROXIES.python):
        with pytest.raises(PeerError, match="make setup-peers"):
            ask()
    assert OURS.version("ray") == "2.60.0"


# ---------------------------------------------------------------------------------------------------------- the command

FAST, SLOW = Manners(first_s=0.005, step_s=0.001), Manners(first_s=0.05, step_s=0.01)


def _standing_in(manners: Manners) -> Any:
    @contextlib.contextmanager
    def start(_setting: Setting, _up: Mapping[str, Server]) -> Iterator[Server]:
        with null_server(manners) as port:
            yield Server(Target("127.0.0.1", port, "/v1"), os.getpid())

    return start


def _broken(_setting: Setting, _up: Mapping[str, Server]) -> AbstractContextManager[Server]:
    raise PeerError("ended with exit code 1 while starting: no such thing")


def _bench(monkeypatch: pytest.MonkeyPatch, out: Path, ballast: Manners, *options: str) -> int:
    monkeypatch.setitem(CONTENDERS, "ballast", Contender("Ballast", "ray", OURS, _standing_in(ballast)))
    monkeypatch.setitem(CONTENDERS, "vllm", Contender("raw vLLM", "ray", OURS, _standing_in(SLOW)))
    monkeypatch.setitem(CONTENDERS, "litellm", Contender("LiteLLM", "ray", OURS, _broken, "vllm"))
    monkeypatch.setattr(command, "_WARMUP_S", 0.2)
    monkeypatch.setattr(command, "_SETTLE_S", 0.0)
    monkeypatch.setattr(command, "_IDLE_S", 0.1)
    load = ("--concurrency", "2", "--duration", "1s", "--prompt-tokens", "20", "--output-tokens", "4")
    given = (*load, "--max-delay-ms", "60000", "--peers", "vllm,litellm", "--out", str(out), *options)
    return main(["bench", "peers", "--config", str(ROOT / "ballast.yaml"), *given])


def test_a_run_has_every_contender_in_every_round_and_the_reason_of_the_one_that_did_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "run", tmp_path / "peers.json"
    assert _bench(monkeypatch, out, FAST, "--rounds", "1", "--no-sampling", "--json", str(kept)) in (0, 1)
    printed = capsys.readouterr().out
    assert "litellm: not measured: ended with exit code 1" in printed
    document = json.loads(kept.read_text())
    assert [(each["contender"], each["round"]) for each in document["rounds"]] == [("ballast", 0), ("vllm", 0)]
    assert document["missing"].keys() == {"litellm"}
    assert str(tmp_path) not in kept.read_text()
    # The same folder again: rounds go on, and what is there is kept.
    assert _bench(monkeypatch, out, FAST, "--rounds", "1", "--no-sampling") in (0, 1)
    assert [each["round"] for each in documents.read(out).document["rounds"]] == [0, 0, 1, 1]
    assert _bench(monkeypatch, out, FAST, "--output-tokens", "5") == BenchError.exit_code


def test_sampling_is_measured_beside_greedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _bench(monkeypatch, tmp_path / "run", FAST, "--rounds", "1")
    modes = {(each["mode"], each["concurrency"]) for each in documents.read(tmp_path / "run").document["rounds"]}
    assert modes == {("greedy", 2), ("sampled", 32)}


def finish(folder: Path, slowness: float, complaint: str | None = None) -> int:
    """The exit code of a run in which raw vLLM was ``slowness`` times slower than Ballast."""
    rounds = []
    for name, slow in (("ballast", 1.0), ("vllm", slowness)):
        round_of(folder / name / "round-0", slow, 1)
        case = {"contender": name, "mode": "greedy", "concurrency": 1, "round": 0, "cpu_s": 0.1}
        files = [f"{name}/round-0/requests-0.jsonl"]
        said = complaint if name == "vllm" else None
        rounds.append({**case, "generator": {"complaint": said}, "files": files})
    options = command.parser().parse_args(["--duration", "3s"])
    return command._finish({"schema_version": 1, "rounds": rounds, "missing": {}}, folder, options, False)


@pytest.mark.parametrize(
    ("slowness", "code", "words"),
    [(2.0, 0, "NOBODY AHEAD"), (0.5, command.AHEAD_EXIT_CODE, "AHEAD OF BALLAST: vllm in")],
)
def test_somebody_ahead_has_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slowness: float, code: int, words: str
) -> None:
    assert finish(tmp_path, slowness) == code
    assert words in capsys.readouterr().out


def test_what_measured_the_generator_is_left_out_and_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(GeneratorTooSlow, match="1 of 2 measurements were left out: it was late"):
        finish(tmp_path, 0.5, "it was late")
    document = documents.read(tmp_path).document
    assert [row["contender"] for row in document["summary"]] == ["ballast"]
    assert document["num_invalid"] == 1


def test_ballast_itself_must_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(CONTENDERS, "ballast", Contender("Ballast", "ray", OURS, _broken))
    with pytest.raises(BenchError, match="Ballast does not start"):
        command.main(["--config", str(ROOT / "ballast.yaml"), "--out", str(tmp_path)])
