"""The processes of one server, found and ended by what the kernel says about them, never by name."""

import contextlib
import ctypes
import logging
import os
import signal
import time
from pathlib import Path

logger = logging.getLogger("ballast.lifecycle")

RUNTIME_DIR_VARIABLE = "BALLAST_RUNTIME_DIR"
"""Set for everything that a server starts, so that it can be told from the processes of another server."""

PR_SET_PDEATHSIG = 1
_POLL_S = 0.02
MIN_KILLED_S = 5.0
"""What was sent SIGKILL has at least this long to end."""


def start_ticks(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot: with it a process id is unique. None when no such process
    runs.
    """
    try:
        # The command's name stands in parentheses and may contain any character, so fields count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie has ended


def processes_of(runtime_dir: Path) -> set[int]:
    """Ids of the processes that carry ``runtime_dir`` in their environment, and of those that they started; our own
    and our parent's left out. Some of Ray's helpers overwrite their environment with their title, so neither way
    finds all."""
    marker = os.fsencode(f"{RUNTIME_DIR_VARIABLE}={runtime_dir}")
    marked: set[int] = set()
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked, or is not ours to look at
            status = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if status[0] in b"ZX":
                continue
            children.setdefault(int(status[1]), []).append(int(entry.name))
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                marked.add(int(entry.name))
    ours = {os.getpid(), os.getppid()}
    found: set[int] = set()
    waiting = list(marked - ours)
    while waiting:
        found.add(pid := waiting.pop())
        waiting += [child for child in children.get(pid, ()) if child not in found | ours]
    return found


def end_processes_of(runtime_dir: Path, patience_s: float = 5.0) -> None:
    """End every process of ``runtime_dir``: SIGTERM, then SIGKILL for what is left after ``patience_s``. A process
    that they started is ended too, also when it loses its parent meanwhile. What outlives SIGKILL for as long, because
    it hangs in a driver, is left to the kernel."""
    deadline_s = time.monotonic() + patience_s
    last_s = deadline_s + max(patience_s, MIN_KILLED_S)
    ticks: dict[int, int | None] = {}
    while True:
        for pid in processes_of(runtime_dir) - ticks.keys():
            ticks[pid] = start_ticks(pid)
            _signal(pid, signal.SIGTERM)
        running = [pid for pid, started in ticks.items() if started is not None and start_ticks(pid) == started]
        if not running:
            return
        if time.monotonic() > last_s:
            logger.warning("processes %s do not end, killed as they are: they hang in the kernel", running)
            return
        if time.monotonic() > deadline_s:
            for pid in running:
                _signal(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _signal(pid: int, signal_number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal_number)


def signal_when_parent_ends(signal_number: signal.Signals, parent_pid: int) -> None:
    """Have the kernel send us ``signal_number`` when the thread that started us ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:  # it ended before the call took effect
        os.kill(os.getpid(), signal_number)


def name_process(name: str) -> None:
    """Have ``ps`` and ``top`` show ``name`` for this process, if vLLM has brought the package that it uses itself."""
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(name)
