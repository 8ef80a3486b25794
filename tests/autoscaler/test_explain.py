"""`ballast autoscale explain`: the last decision of each model, however long the record is and whoever wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.autoscaler import decisions
from serving.autoscaler.decisions import FILE_NAME, FORMER_FILE_NAME, read_back
from serving.cli import main
from serving.commands.autoscale import latest
from tests.autoscaler.test_decisions import history, write

CONFIG = """
server: {{state_dir: {folder}}}
models:
  - name: demo
    source: {folder}
    pools: [{{name: gpu, device: cpu, cpus_per_replica: 1, usd_per_hour: 0.1}}]
"""
LATE_S = 1.8e9 + 1e6
OTHER_SHAPE: dict[str, Any] = {"decision": {"at_s": 1.8e9, "model": "demo", "reason": "none that we know"}}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The folder of decisions of the server whose config is ``tmp_path / "ballast.yaml"``."""
    (tmp_path / "ballast.yaml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path / "decisions"


def explained(folder: Path, *options: str) -> int:
    return main(["autoscale", "explain", "--config", str(folder.parent / "ballast.yaml"), *options])


@pytest.mark.parametrize("block_bytes", [1, 7, 1000, 2**20])
def test_lines_are_read_from_the_end_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(decisions, "_BLOCK_BYTES", block_bytes)
    (tmp_path / "file").write_text('{"a": 1}\n[2]\n{"torn": \n{"b": 3}\n')
    assert list(read_back(tmp_path / "file")) == [{"b": 3}, [2], {"a": 1}]


def test_no_more_is_read_than_the_last_decisions_need(tmp_path: Path) -> None:
    write(tmp_path, history(3))
    documents = read_back(tmp_path / FILE_NAME)
    ((last,), num_other) = latest(documents, LATE_S, ["demo"])
    assert (last, num_other) == (history(3)[-1][0], 0)
    assert len(list(documents)) == 2, "the decision after the last and the start are still unread"


def test_a_decision_of_an_earlier_time_is_in_the_file_before(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = history(2)
    write(record, [first])
    (record / FILE_NAME).rename(record / FORMER_FILE_NAME)
    write(record, [second])
    assert explained(record, "--at", str(first[0].at_s), "--json") == 0
    assert [each["at_s"] for each in json.loads(capsys.readouterr().out)] == [first[0].at_s]


def test_entries_of_another_shape_are_passed_over_and_counted(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(record, history(1))
    with (record / FILE_NAME).open("a") as file:
        file.write(f"{json.dumps(OTHER_SHAPE)}\n" * 2)
    assert explained(record, "--at", str(LATE_S)) == 0
    shown = capsys.readouterr().out
    assert "2 entries of another version were passed over" in shown
    assert "demo at " in shown


def test_a_decision_is_shown_with_its_age(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ((made, start),) = history(1)
    write(record, [(made, start)])
    assert explained(record, "--at", str(made.at_s + 5 * 3600.0)) == 0
    assert ", 5 h old" in capsys.readouterr().out
