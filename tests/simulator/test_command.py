"""The command: table, JSON, report, and what it says to a user's mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.simulator.__main__ import main
from benchmarks.simulator.trace import Trace
from benchmarks.simulator.verdict import judge, merge


@pytest.fixture
def file(tmp_path: Path, poisson: Callable[..., Trace]) -> Path:
    trace = poisson(7.0, 600.0)
    path = tmp_path / "small.csv"
    rows = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a},{p},{o}\n" for a, p, o in rows))
    return path


def test_a_study_is_printed_and_written(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main(["--trace", str(file), "--policy", "ours,static", "--seeds", "2", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "small" in text
    assert "peers better on both" in text
    document = json.loads(out.read_text())
    assert {"schema_version", "machine", "versions", "commit", "command"} <= set(document)
    (entry,) = document["studies"]
    assert [result["policy"] for result in entry["results"]] == ["ours", "static"]
    assert entry["verdict"]["to_dp_all_pools_u085"] > 0.5
    assert entry["verdict"]["to_ray_in_hindsight"] is None


def test_a_second_run_adds_its_policies_to_the_file(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    common = ["--trace", str(file), "--seeds", "1", "--json", str(out), "--append", "--to-h", "0.1"]
    assert main([*common, "--policy", "ours"]) == 0
    assert main([*common, "--policy", "ray", "--no-oracle"]) == 0
    (entry,) = json.loads(out.read_text())["studies"]
    assert {result["policy"] for result in entry["results"]} == {"ours", "ray"}
    assert entry["references"] is not None
    assert entry["verdict"]["to_ray_default"] < 1.0
    assert main([*common, "--policy", "ours", "--no-oracle", "--cold-start-s", "30", "--shed"]) == 0
    assert len(json.loads(out.read_text())["studies"]) == 2


def test_the_report_is_one_page(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--trace", str(file), "--policy", "ours,static", "--seeds", "1", "--report", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r" / "index.html").read_text().count("data:image/png;base64,") == 2
    assert len(list((tmp_path / "r").glob("*.png"))) == 2


def test_a_users_mistake_is_named(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", str(file), "--policy", "ours,best"]) == 2
    assert main(["--trace", str(tmp_path / "none.csv"), "--policy", "ours"]) == 2
    wrong = tmp_path / "s.yaml"
    wrong.write_text("slo: 3\n")
    assert main(["--trace", str(file), "--policy", "ours", "--scenario", str(wrong)]) == 2
    assert "no policy best" in capsys.readouterr().err


def test_a_peer_that_is_better_on_both_is_named() -> None:
    def result(policy: str, usd: float, slo: float) -> dict[str, object]:
        return {"policy": policy, "is_default": False, "usd": usd, "usd_ci95": 0.1, "slo": slo, "slo_ci95": 0.0001}

    entry = {
        "objective": 0.99,
        "references": None,
        "results": [result("ours", 10.0, 0.992), result("hpa", 9.0, 0.995), result("kpa", 9.0, 0.9)],
        "hindsight": [{"policy": "hpa", "setting": {}, "usd": 9.0, "slo": 0.995}],
    }
    verdict = judge(entry)
    assert verdict is not None
    assert verdict["dominated_by"] == ["hpa"]
    assert len(verdict["dominated_by_any_setting"]) == 1
    assert judge({**entry, "results": []}) is None
    again = merge(entry, {**entry, "results": [result("ours", 1.0, 1.0)], "hindsight": []})
    assert [row["usd"] for row in again["results"]] == [1.0, 9.0, 9.0]
