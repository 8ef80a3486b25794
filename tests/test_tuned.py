"""`ballast check` says what a pool was tuned for, and when that is no longer so."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.cli import main
from serving.tuned import read_tuned

ROOT = Path(__file__).parent.parent
EVIDENCE: dict[str, Any] = {
    "kind": "tuned",
    "model": "ballast-demo",
    "pool": "cpu",
    "settings": {"engine.max_num_seqs": 64, "replicas": 1},
    "usd_per_million_tokens_at_slo": {"before": {"value": 12.5}, "after": {"value": 9.75}},
    "measured_at": "2026-11-22T23:00:00+00:00",
    "slo": "99.000% of requests whole with ttft <= 0.5 s",
}


def write(folder: Path, **changes: Any) -> Path:
    text = (ROOT / "ballast.yaml").read_text().replace("models/demo", str(ROOT / "models" / "demo"))
    path = folder / "ballast.tuned.yaml"
    path.write_text(text.replace("host: 127.0.0.1", f"state_dir: {folder / 'state'}"))
    path.with_suffix(".json").write_text(json.dumps(EVIDENCE | changes))
    return path


def test_check_tells_what_tuning_has_brought(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--config", str(write(tmp_path))])
    said = capsys.readouterr().out
    assert "tuned ballast-demo/cpu on 2026-11-22: cost per million tokens at the SLO 12.5 → 9.75 USD" in said
    assert "no longer so" not in said


def test_check_tells_when_the_slo_was_not_held_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = {"before": {"value": None}, "after": {"value": 9.75}}
    main(["check", "--config", str(write(tmp_path, usd_per_million_tokens_at_slo=cost))])
    assert "cost per million tokens at the SLO not held before → 9.75 USD" in capsys.readouterr().out


def test_check_tells_when_the_config_has_moved_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, settings={"engine.max_num_seqs": 256, "engine.extra.stream_interval": 4})
    main(["check", "--config", str(path)])
    assert "no longer so: engine.max_num_seqs, engine.extra.stream_interval" in capsys.readouterr().out
    main(["check", "--config", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)["tuned"]
    assert found["stale_keys"] == ["engine.max_num_seqs", "engine.extra.stream_interval"]


@pytest.mark.parametrize("changes", [{"kind": "plan"}, {"usd_per_million_tokens_at_slo": None}])
def test_a_file_of_that_name_that_is_something_else_is_none_of_ours(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_tuned(write(tmp_path, **changes)) is None
    assert read_tuned(tmp_path / "other.yaml") is None
