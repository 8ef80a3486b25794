"""The record of decisions: what was decided can be read, and decided again."""

import json
import os
from pathlib import Path

import pytest

from serving.autoscaler import decisions
from serving.autoscaler.decisions import (
    FILE_NAME,
    FORMER_FILE_NAME,
    SCHEMA_VERSION,
    Decision,
    DecisionLog,
    Start,
    read_file,
    replay,
)
from serving.autoscaler.memory import Memory
from serving.autoscaler.policy import decide
from serving.autoscaler.types import PoolState, Work
from tests.autoscaler.world import GPU_MODEL, PRICES, SPEC, demand


def history(number: int = 20, model: str = "demo", start_s: float = 1000.0) -> list[tuple[Decision, Start]]:
    """Decisions of one model, each with what was known before it, under a load that rises."""
    made, memory = [], Memory()
    for index in range(number):
        now_s = start_s + 2.0 * index
        state = PoolState(1, (12.5,), (31.25,), Work(20, 3000, 400, 1e5, 1.9))
        load = demand(0.5 * index, interval_s=2.0)
        start = Start(model, SPEC, memory)
        plan, memory = decide(now_s, {"gpu": state}, load, PRICES, SPEC, memory)
        made.append(
            (Decision(1.8e9 + now_s, now_s, model, {"gpu": state}, load, PRICES, {"gpu": GPU_MODEL}, plan, True), start)
        )
    return made


def write(folder: Path, made: list[tuple[Decision, Start]]) -> DecisionLog:
    log = DecisionLog(folder)
    for decision, start in made:
        log.write(decision, start)
    return log


def decisions_in(path: Path) -> list[Decision]:
    return [entry for entry in read_file(path) if isinstance(entry, Decision)]


def test_what_was_written_is_read_and_decided_again_the_same(tmp_path: Path) -> None:
    made = history()
    write(tmp_path, made)
    start, *read = read_file(tmp_path / FILE_NAME)
    assert start == made[0][1]
    assert read == [decision for decision, _ in made]
    replayed = list(replay(read_file(tmp_path / FILE_NAME)))
    assert len(replayed) == len(made)
    assert all(each.is_same and each.plan == each.recorded.plan for each in replayed)


def test_a_decision_that_would_be_another_today_is_told(tmp_path: Path) -> None:
    write(tmp_path, history())
    path = tmp_path / FILE_NAME
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    entries[5]["decision"]["plan"]["targets"]["gpu"] += 1
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert [each.is_same for each in replay(read_file(path))].index(False) == 4


def test_each_model_begins_with_what_was_known_of_it(tmp_path: Path) -> None:
    one, other = history(model="one"), history(model="other")
    write(tmp_path, [entry for pair in zip(one, other, strict=True) for entry in pair])
    replayed = list(replay(read_file(tmp_path / FILE_NAME)))
    assert len(replayed) == 40
    assert all(each.is_same for each in replayed)


def test_a_file_that_is_full_is_put_aside_and_each_can_be_replayed_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = history(40)
    write(tmp_path / "whole", made)
    monkeypatch.setattr(decisions, "MAX_FILE_BYTES", (tmp_path / "whole" / FILE_NAME).stat().st_size * 2 // 3)
    write(tmp_path, made)
    former, present = decisions_in(tmp_path / FORMER_FILE_NAME), decisions_in(tmp_path / FILE_NAME)
    assert former + present == [decision for decision, _ in made]
    assert former
    assert present
    assert all(each.is_same for each in replay(read_file(tmp_path / FILE_NAME)))


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    made = history()
    write(tmp_path, made[:10])
    write(tmp_path, made[10:])
    assert len(decisions_in(tmp_path / FILE_NAME)) == 20
    assert all(each.is_same for each in replay(read_file(tmp_path / FILE_NAME)))


def test_others_cannot_look_into_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "state" / "decisions", history(1))
    assert os.stat(tmp_path / "state" / "decisions").st_mode & 0o077 == 0


def test_a_file_that_could_not_be_begun_is_begun_with_the_next_decision(tmp_path: Path) -> None:
    """The disk was full for a moment."""
    made = history(3)
    log = DecisionLog(tmp_path)
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(OSError, match="directory"):
        log.write(*made[0])
    (tmp_path / FILE_NAME).rmdir()
    for decision, start in made[1:]:
        log.write(decision, start)
    assert [each.is_same for each in replay(read_file(tmp_path / FILE_NAME))] == [True, True]


def test_a_disk_that_was_full_for_one_model_leaves_a_record_that_replays_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = history(4, model="one"), history(4, model="other")
    log = DecisionLog(tmp_path)
    log.write(*one[0])
    log.write(*other[0])
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"decision": {"at_')  # what a full disk took of it
    with monkeypatch.context() as full:
        full.setattr(decisions.json, "dumps", raise_full)
        with pytest.raises(OSError, match="No space"):
            log.write(*one[1])
    for pair in zip(other[2:], one[2:], strict=True):
        for entry in pair:
            log.write(*entry)
    assert [each.is_same for each in replay(read_file(tmp_path / FILE_NAME))] == [True] * 6


def raise_full(*_: object) -> bytes:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"\xff\xfe\x00",
        b"\x00" * 50,
        b"[]",
        b'{"other": 1}',
        b'{"decision": {"at_s": 1}}',
        b'{"start": 7}',
        b"NaN",
    ],
)
def test_a_damaged_line_is_named_by_its_file_and_number(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, history())
    path = tmp_path / FILE_NAME
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], damage, *lines[3:]]) + b"\n")
    entries = read_file(path)
    assert [type(next(entries)) for _ in range(3)] == [Start, Decision, Decision]
    with pytest.raises(ValueError, match=f"{FILE_NAME}, line 4: "):
        next(entries)


def test_a_line_that_was_cut_short_costs_nothing_but_itself(tmp_path: Path) -> None:
    """By a full disk or a crash; the next server begins a line, and says again where it starts from."""
    write(tmp_path, history(3))
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-40])
    assert len(list(read_file(path))) == 3, "a start and two decisions"
    write(tmp_path, history(2))
    entries = list(read_file(path))
    assert [type(entry) for entry in entries] == [Start, Decision, Decision, Start, Decision, Decision]
    assert all(replayed.is_same for replayed in replay(iter(entries)))


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path, history(1))
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'))
    with pytest.raises(ValueError, match="line 1: schema version 99"):
        list(read_file(path))


def test_a_file_without_a_beginning_cannot_be_replayed(tmp_path: Path) -> None:
    made = history(2)
    write(tmp_path, made)
    _, *entries = read_file(tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="no start for model 'demo'"):
        list(replay(iter(entries)))
