"""``ballast bench compare`` calls a regression what is one, and refuses what it cannot compare."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks.load.mistake import BenchError
from benchmarks.runs import compare
from benchmarks.runs.document import SCHEMA_VERSION
from serving.cli import main
from tests.benchmarks.test_rows import FAILED, row, rows_of

LOAD = {"rate_per_s": 10.0, "concurrency": None, "warmup_s": 0.0}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "NUM_RESAMPLES", 1000)


def write_run(folder: Path, slowness: float = 1.0, seed: int = 0, *, failed: float = 0.0, **load: Any) -> Path:
    """A run of two rounds whose latencies vary by a third, slow seconds included."""
    rng = np.random.default_rng(seed)
    rounds = []
    for number in range(2):
        weather = np.exp(rng.normal(0.0, 0.1, 60))
        rows = []
        for at in range(600):
            first_s = float(0.05 * slowness * weather[at // 10] * np.exp(rng.normal(0.0, 0.2)))
            gaps_us = (10_000 * slowness * np.exp(rng.normal(0.0, 0.2, 8))).astype(int).tolist()
            changed: dict[str, Any] = {
                "first_token_s": 0.1 * at + first_s, "last_token_s": 0.1 * at + first_s + sum(gaps_us) / 1e6,
                "end_s": 0.1 * at + first_s + sum(gaps_us) / 1e6, "itl_us": gaps_us, "output_tokens": 9,
            }  # fmt: skip
            rows.append(row(0.1 * at, **(FAILED if rng.random() < failed else changed)))
        (folder / f"round-{number}").mkdir(parents=True)
        (folder / f"round-{number}" / "requests-0.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
        files = [f"round-{number}/requests-0.jsonl"]
        rounds.append({"rate_per_s": 10.0, "generator": {"complaint": None}, "files": files})
    document = {
        "schema_version": SCHEMA_VERSION, "kind": "serve", "status": "complete", "load": LOAD | load, "rounds": rounds,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))
    return folder


def judged(a: Path, b: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["bench", "compare", str(a), str(b), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_the_same_thing_twice_is_no_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = judged(write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", seed=2), capsys)
    assert (code, found["worse"], found["better"]) == (0, [], [])
    assert all(metric["low"] <= 1.0 <= metric["high"] for metric in found["metrics"][:-1])


def test_ten_percent_slower_is_one_and_faster_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", 1.12, seed=2)
    code, found = judged(a, b, capsys)
    assert code == 1
    assert {"itl_p50_ms", "tpot_p50_ms", "e2e_p50_ms"} <= set(found["worse"])
    code, found = judged(b, a, capsys)
    assert code == 0
    assert "itl_p50_ms" in found["better"]


def test_a_tolerance_allows_as_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", 1.12, seed=2)
    assert judged(a, b, capsys, "--tolerance", "0.3")[0] == 0


def test_more_failures_are_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", seed=2, failed=0.05)
    code, found = judged(a, b, capsys)
    assert (code, found["worse"]) == (1, ["failed_share"])


@pytest.mark.parametrize("concurrency", [None, 4])
@pytest.mark.parametrize("failed", [0.999, 1.0])
def test_a_candidate_that_answers_nothing_is_a_regression(
    tmp_path: Path, failed: float, concurrency: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", seed=1, concurrency=concurrency)
    code, found = judged(a, write_run(tmp_path / "b", seed=2, failed=failed, concurrency=concurrency), capsys)
    assert code == 1
    assert found["worse"] == ["output_tokens_per_s", "failed_share"][0 if concurrency else 1 :]


def test_to_a_baseline_that_answered_nothing_there_is_no_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", seed=1, failed=1.0, concurrency=4)
    code, found = judged(a, write_run(tmp_path / "b", seed=2, concurrency=4), capsys)
    assert code == 0
    assert [(metric["name"], metric["judgement"]) for metric in found["metrics"]] == [("failed_share", "better")]


@pytest.mark.parametrize("every_s", [0.0, 1.0])
def test_few_requests_or_all_at_one_moment_say_nothing(tmp_path: Path, every_s: float) -> None:
    side = compare.Side([rows_of(tmp_path, [row(every_s * at) for at in range(3 if every_s else 16)])], every_s == 0.0)
    with pytest.raises(BenchError, match="measure for longer"):
        compare.compare(side, side, compare.Tolerance())


def test_requests_that_all_failed_at_one_moment_say_nothing(tmp_path: Path) -> None:
    side = compare.Side([rows_of(tmp_path, [row(0.0, **FAILED) for _ in range(16)])], is_closed=True)
    with pytest.raises(BenchError, match="measure for longer"):
        compare.compare(side, side, compare.Tolerance())


def test_throughput_counts_in_a_closed_loop_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", seed=1, concurrency=4)
    _, found = judged(a, write_run(tmp_path / "b", seed=2, concurrency=4), capsys)
    assert "output_tokens_per_s" in {metric["name"] for metric in found["metrics"]}
    _, found = judged(write_run(tmp_path / "c", seed=1), write_run(tmp_path / "d", seed=2), capsys)
    assert "output_tokens_per_s" not in {metric["name"] for metric in found["metrics"]}


def test_a_higher_rate_is_better_and_a_wide_interval_says_nothing() -> None:
    few = np.full(100, 100.0)
    more = np.full(100, 120.0)
    assert compare._ratio("x_per_s", (100.0, few), (120.0, more), 0.95, 0.05).judgement == "better"
    assert compare._ratio("x_per_s", (120.0, more), (100.0, few), 0.95, 0.05).judgement == "worse"
    wide = np.linspace(80.0, 130.0, 100)
    assert compare._ratio("x_ms", (100.0, few), (100.0, wide), 0.95, 0.05).judgement == "unclear"
    assert compare._ratio("x_ms", (100.0, few), (100.0, few), 0.95, 0.05).judgement == "same"


def test_in_words_it_says_what_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", 1.3, seed=2)
    assert main(["bench", "compare", str(a), str(b / "run.json")]) == 1
    shown = capsys.readouterr().out
    assert "REGRESSION: B is worse in" in shown
    assert "e2e_p50_ms" in shown


def test_different_load_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", rate_per_s=20.0)
    assert main(["bench", "compare", str(a), str(b)]) == 2
    assert "rate_per_s is 10.0 in A and 20.0 in B" in capsys.readouterr().err


def changed(run: Path, **fields: Any) -> Path:
    """``run`` with other ``fields`` of its document; of the first round where they are a round's."""
    document = json.loads((run / "run.json").read_text())
    for name, value in fields.items():
        (document["rounds"][0] if name in ("generator", "marks") else document)[name] = value
    (run / "run.json").write_text(json.dumps(document))
    return run


def test_a_run_that_measured_its_generator_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = changed(write_run(tmp_path / "b"), generator={"complaint": "it was the bottleneck"})
    assert main(["bench", "compare", str(write_run(tmp_path / "a")), str(b)]) == 2
    assert "it was the bottleneck" in capsys.readouterr().err


def test_a_run_with_faults_is_compared_with_one_that_has_them_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a")
    b = changed(write_run(tmp_path / "b"), marks=[{"name": "kill-engine", "planned_s": 9.0}])
    assert main(["bench", "compare", str(a), str(b)]) == 2
    assert "kill-engine at 9 s" in capsys.readouterr().err


def test_a_run_that_was_cut_short_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = changed(write_run(tmp_path / "b", seed=2), status="interrupted")
    _, found = judged(write_run(tmp_path / "a", seed=1), b, capsys)
    assert found["notes"] == ["B is not complete: interrupted"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "no run"),
        ('{"rounds": [], "schema_version": 99}', "schema_version 99"),
        ('{"rounds": [], "schema_version": 1, "load": {"warmup_s": 0, "rate_per_s": 1}}', "no round"),
        ('{"rounds": [], "schema_version": 1, "load": {}, "kind": "peers"}', "a run of `bench peers`"),
    ],
)
def test_what_is_no_run_is_told(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(text)
    assert main(["bench", "compare", str(tmp_path), str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_a_run_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "name a run's folder" in capsys.readouterr().err
