"""The processes of one server, found and ended by what the kernel says about them, never by name."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

RUNTIME_DIR_VARIABLE = "BALLAST_RUNTIME_DIR"
"""Set for everything that a server starts, so that it can be told from the processes of another server."""

PR_SET_PDEATHSIG = 1
_POLL_S = 0.02


def start_ticks(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot: with it a process id is unique. None when no such process runs."""
    try:
        # The command's name stands in parentheses and may contain any character, so fields count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie has ended


def processes_of(runtime_dir: Path) -> Iterator[int]:
    """Ids of the processes that carry ``runtime_dir`` in their environment or as part of their command line, our own and our
    parent's left out. Workers of Ray change their command line, HAProxy's master its environment: hence both."""
    marker = os.fsencode(f"{RUNTIME_DIR_VARIABLE}={runtime_dir}")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):  # it ended while we looked, or is not ours to look at
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def end_processes_of(runtime_dir: Path, patience_s: float = 5.0) -> int:
    """End every process of ``runtime_dir``: SIGTERM, then SIGKILL for what is left after ``patience_s``. Returns how many
    needed the latter."""
    if _signal_until_gone(runtime_dir, signal.SIGTERM, patience_s):
        return _signal_until_gone(runtime_dir, signal.SIGKILL, 5.0)
    return 0


def _signal_until_gone(runtime_dir: Path, signal_number: signal.Signals, patience_s: float) -> int:
    """Signal each process once, also those that appear meanwhile. Returns how many are left at the deadline (or, for
    SIGKILL, how many it took)."""
    deadline_s = time.monotonic() + patience_s
    signalled: set[int] = set()
    while True:
        running = set(processes_of(runtime_dir))
        for pid in running - signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)
        signalled |= running
        if not running:
            return len(signalled) if signal_number is signal.SIGKILL else 0
        if time.monotonic() > deadline_s:
            return len(running)
        time.sleep(_POLL_S)


def signal_when_parent_ends(signal_number: signal.Signals, parent_pid: int) -> None:
    """Have the kernel send us ``signal_number`` when the thread that started us ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:  # it ended before the call took effect
        os.kill(os.getpid(), signal_number)
