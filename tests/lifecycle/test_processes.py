import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.lifecycle import processes
from serving.lifecycle.processes import RUNTIME_DIR_VARIABLE, end_processes_of, processes_of, start_ticks

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
PARENT = (
    "import os, subprocess, sys; env = dict(os.environ); env.pop('BALLAST_RUNTIME_DIR');"
    f"subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], env=env, start_new_session=True);"
    "import time; time.sleep(60)"
)


def start(code: str, runtime_dir: Path) -> subprocess.Popen[bytes]:
    """A process of ``runtime_dir`` that has come up."""
    environment = {**os.environ, RUNTIME_DIR_VARIABLE: str(runtime_dir)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finish(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(timeout=10)


def test_a_process_is_known_by_its_id_and_start_and_a_dead_one_has_no_start(tmp_path: Path) -> None:
    process = start(SLEEPER, tmp_path)
    assert start_ticks(process.pid) == start_ticks(process.pid) is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(process.pid) is None, "a zombie has ended"
    finish(process)
    assert start_ticks(process.pid) is None


def test_processes_of_one_runtime_folder_are_found_and_those_of_another_are_not(tmp_path: Path) -> None:
    ours, other = start(SLEEPER, tmp_path / "a"), start(SLEEPER, tmp_path / "ab")
    assert processes_of(tmp_path / "a") == {ours.pid}
    for process in (ours, other):
        process.kill()
        finish(process)


def test_ending_them_takes_also_those_that_they_started_and_leaves_ourselves_alone(tmp_path: Path) -> None:
    parent = start(PARENT, tmp_path)
    everything = processes_of(tmp_path)
    assert len(everything) == 2
    end_processes_of(tmp_path)
    assert finish(parent) == -signal.SIGTERM
    assert all(start_ticks(pid) is None for pid in everything)


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    process = start(STUBBORN, tmp_path)
    end_processes_of(tmp_path, patience_s=0.1)
    assert finish(process) == -signal.SIGKILL


def test_what_hangs_in_the_kernel_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process in a hung driver does not hear SIGKILL either; the server's end must not hang with it."""
    process = start(SLEEPER, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(processes, "_signal", lambda pid, number: None)
        patched.setattr(processes, "MIN_KILLED_S", 0.1)
        end_processes_of(tmp_path, patience_s=0.1)
    assert str(process.pid) in caplog.text
    process.kill()
    finish(process)
