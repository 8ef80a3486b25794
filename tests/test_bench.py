"""``ballast bench``, and the small benchmarks that write their own files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks import calibrate, cpu_pool, decisions, week
from benchmarks.load.mistake import BenchError
from benchmarks.load.traffic import Due, Sent
from benchmarks.simulator import __main__ as simulator
from serving.cli import main
from serving.config import parse_config
from serving.machine import Machine
from serving.router.prediction import StepModel

ROOT = Path(__file__).parent.parent
MACHINE = Machine(num_cpus=2.0, total_memory_bytes=2**35, available_memory_bytes=2**35, free_disk_bytes=2**40)


def _write_trace(path: Path, every_s: float, number: int) -> Path:
    rows = "".join(f"{every_s * index},{100 + index % 7},20\n" for index in range(number))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    return path


def test_the_rest_of_the_line_is_the_benchmarks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[str] | None] = []
    monkeypatch.setattr(simulator, "main", lambda arguments: seen.append(arguments) or 7)
    assert main(["bench", "autoscale", "--trace", "a.csv", "--seeds", "2", "--help"]) == 7
    assert seen == [["--trace", "a.csv", "--seeds", "2", "--help"]]


def test_calibrate_takes_each_pool_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Sequence[str] | None] = []
    monkeypatch.setattr(calibrate, "main", lambda arguments: seen.append(arguments) or 0)
    assert main(["bench", "calibrate", "--config", "a.yaml"]) == 0
    assert seen == [["--config", "a.yaml"]]
    [(model, pool, config)] = calibrate.single_pools(ROOT / "ballast.yaml", MACHINE)
    assert (model, pool) == ("ballast-demo", "cpu")
    assert config["models"][0]["pools"][0]["replicas"] == {"min": 1, "max": 1}
    assert parse_config(yaml.safe_dump(config), tmp_path).models[0].name == model


def test_a_pool_that_cannot_be_placed_is_not_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((ROOT / "ballast.yaml").read_text())
    (model,) = config["models"]
    model["source"] = str(ROOT / "models" / "demo")
    model["pools"].append({"name": "gpu", "device": "cuda", "gpus_per_replica": 1, "usd_per_hour": 1.0})
    (tmp_path / "ballast.yaml").write_text(yaml.safe_dump(config))
    found = calibrate.single_pools(tmp_path / "ballast.yaml", MACHINE)
    assert [pool for _, pool, _ in found] == ["cpu"]
    assert "ballast-demo/gpu is left out: " in capsys.readouterr().err
    with pytest.raises(BenchError, match="none of its pools can be placed here"):
        calibrate.single_pools(tmp_path / "ballast.yaml", replace(MACHINE, num_cpus=0.5))


def test_what_a_fit_predicts_is_compared_with_what_was_measured() -> None:
    model = StepModel(0.002, 0.001, 0.0, 0.0001, 2048, 64, 100_000)
    sent = [Sent(Due(0.0, (1,) * 1000, calibrate.OUTPUT_TOKENS), end_s=0.1 + 63 * 0.004, first_s=0.1) for _ in range(2)]
    found = calibrate._compare(model, 1000, 2, sent)
    assert found.predicted_tpot_s == pytest.approx(0.004, rel=0.01)
    assert found.tpot_error == pytest.approx(0.0, abs=0.02)
    assert found.ttft_s == 0.1


def test_a_subject_that_there_is_none_of_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "autoscal"])
    assert stopped.value.code == 2
    assert "did you mean 'autoscale'?" in capsys.readouterr().err


def test_decisions_are_timed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_NUM_CHOICES", 200)
    monkeypatch.setattr(decisions, "_SPAN_S", 60.0)
    decisions.main(["--json", str(tmp_path / "out.json")])
    document = json.loads((tmp_path / "out.json").read_text())
    assert {"commit", "command", "machine", "versions"} <= set(document)
    assert set(document["results"]) == {"choose at 64 replicas", "decide at 8 pools", "decide at 2 pools"}


def test_a_week_is_simulated_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(week, "SPAN_S", 600.0)
    trace = _write_trace(tmp_path / "trace.csv", 1.0, 300)
    assert week.main(["--trace", str(trace), "--policy", "ours,static", "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["num_requests"] == pytest.approx(2400, rel=0.1)
    assert [run["policy"] for run in document["runs"]] == ["ours", "static"]


def test_the_cpu_pool_is_put_beside_a_fleet_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_pool, "_SPAN_S", 300.0)
    low, heavy = _write_trace(tmp_path / "low.csv", 2.0, 200), _write_trace(tmp_path / "heavy.csv", 0.5, 400)
    out = tmp_path / "out.json"
    assert cpu_pool.main(["--low", str(low), "--heavy", str(heavy), "--seeds", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 8 * 4
    assert all(row["cpu_hours"] == 0.0 for row in rows if row["cpu_usd_per_hour"] is None)
