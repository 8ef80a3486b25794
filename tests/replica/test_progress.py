"""What a replica tells of its start, and what is made of it."""

import time
from pathlib import Path

import pytest

from serving.replica import progress


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(progress.VARIABLE, "")  # so that it is put back
    return progress.report_to(tmp_path, "model.cpu", "replica-1")


def test_a_step_begins_now_or_when_it_is_said_to_have_begun(path: Path) -> None:
    progress.write_step(progress.PROCESS, 12.5)
    progress.write_step(progress.IMPORTS)
    steps = list(progress.read_steps(path))
    assert steps[0] == (12.5, progress.PROCESS)
    assert steps[1] == (pytest.approx(time.time(), abs=5), progress.IMPORTS)


def test_without_a_file_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    progress.write_step(progress.READY)


def test_a_step_takes_until_the_next_one_begins_and_readiness_takes_nothing() -> None:
    steps = [(1.0, "process"), (2.5, "imports"), (2.75, "weights"), (4.0, "ready")]
    assert progress.split(steps) == {"process": 1.5, "imports": 0.25, "weights": 1.25}
    assert progress.split([]) == {}


def test_people_read_a_word_for_every_step_but_the_last() -> None:
    steps = {value for name, value in vars(progress).items() if name.isupper() and isinstance(value, str)}
    assert steps - set(progress.WORDS) == {progress.VARIABLE, progress.FOLDER, progress.READY}


def test_our_process_began_before_now_and_after_the_machine() -> None:
    machine_began_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert machine_began_s < progress.process_began_s() < time.time()
