"""Another server as a process: started, waited for, and ended with all that it has started."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.mistake import BenchError
from benchmarks.load.probe import learn_speech
from benchmarks.load.prompts import Speech
from benchmarks.load.target import Target
from benchmarks.runs.watcher import usage_of
from serving.cluster import new_runtime_dir
from serving.lifecycle.processes import RUNTIME_DIR_VARIABLE, end_processes_of

START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.5
_LAST_LINES = 3
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables by which another environment's Python would find our packages."""


class PeerError(Exception):
    """A peer that cannot be measured here; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Server:
    """One that is up, and the process that all its others descend from."""

    target: Target
    pid: int

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        return usage_of(self.pid)["cpu_s"]


@contextlib.contextmanager
def started(
    command: Sequence[str], environ: Mapping[str, str], speech: Speech, port: int, key: str | None = None
) -> Iterator[Server]:
    """The server that ``command`` starts on ``port`` of loopback, once it streams an answer to who sends ``key``.

    ``{folder}`` in a word of the command or of ``environ`` is a folder that goes with the server. Raises PeerError
    when it ends or does not answer within ``START_TIMEOUT_S``.
    """
    folder = new_runtime_dir()
    try:
        log = folder / "peer.log"
        words = [word.replace("{folder}", str(folder)) for word in command]
        with log.open("wb") as output:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=_environment(environ, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C is ours to hear: what was measured is kept before servers end
            )
        try:
            target = Target("127.0.0.1", port, "/v1", key=key)
            _wait_until_it_streams(target, speech, process, log)
            yield Server(target, process.pid)
        finally:
            _stop(process, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # each of its processes would compile all that it imports
    given = {name: value.replace("{folder}", str(folder)) for name, value in environ.items()}
    return {**kept, "TMPDIR": str(folder), RUNTIME_DIR_VARIABLE: str(folder), **given}


def _wait_until_it_streams(target: Target, speech: Speech, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    problem = "it never answered"
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            learn_speech(target, speech)
            return
        except BenchError as error:
            problem = str(error)
        time.sleep(_POLL_S)
    if process.returncode is not None:
        raise PeerError(f"ended with exit code {process.returncode} while starting: {_last_words(log)}")
    raise PeerError(f"not ready within {START_TIMEOUT_S:g} s: {problem}; {_last_words(log)}")


def _last_words(log: Path) -> str:
    """The end of what it printed, in one line and without the folders of this machine."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    words = " ".join(" / ".join(lines[-_LAST_LINES:]).split())
    return " ".join(Path(word).name if word.startswith("/") and len(word) > 1 else word for word in words.split(" "))


def _stop(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    end_processes_of(folder)
    process.kill()
    process.wait()
