"""`ballast tune` on real servers: a candidate is started beside nothing else, measured, stopped, and remembered.

With the scripted engine, because what is tested is everything around it.
"""

import json
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.tune.command import main

ROOT = Path(__file__).parents[2]
SCRIPT = {"prefill_s": 0.02, "step_s": 0.005, "max_num_seqs": 8, "max_model_len": 4096}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]


def test_a_candidate_is_measured_on_a_server_of_its_own_and_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "ballast.yaml"
    source = str(ROOT / "models" / "demo")
    config.write_text((ROOT / "ballast.yaml").read_text().replace("models/demo", source))
    before = set(processes.named("serving.lifecycle.holder"))
    arguments = [
        "--config", str(config), "--slo", "ttft=30s,objective=0.5", "--budget-min", "0.01", "--duration", "1s",
        "--prompt-tokens", "20", "--output-tokens", "8", "--start-rate", "4", "--max-rate", "8", "--workers", "1",
        "--max-delay-ms", "60000", "--json", "--up=--engine", "--up=scripted", "--up=--engine-args",
        f"--up={json.dumps(SCRIPT)}",
    ]  # fmt: skip
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 1
    document = json.loads(capsys.readouterr().out)
    [visit] = document["visits"]
    assert visit["error"] is None
    [candidate] = document["result"]["candidates"]
    assert [each["rate_per_s"] for each in candidate["rounds"]] == [4.0, 8.0]
    assert candidate["tokens_per_request"] >= 8.0  # a scripted engine counts no prompt
    assert candidate["latency_at_slo"]["ttft_ms"]["p50"] >= 20.0
    assert str(tmp_path) not in json.dumps(document)
    assert not set(processes.named("serving.lifecycle.holder")) - before
    assert not config.with_name("ballast.tuned.yaml").exists()
    assert main([*arguments, "--resume", str(out)]) == 1
    assert json.loads(capsys.readouterr().out)["visits"] == [visit]
