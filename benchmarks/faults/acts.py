"""What can be done to the processes of a running server: by the faults of this folder, and by `ballast bench chaos`."""

import contextlib
import os
import signal
from collections.abc import Iterable

from benchmarks import processes
from benchmarks.server import Replica


def engine_core(replica: Replica) -> int:
    """vLLM's process of a replica. Raises LookupError when it has none, as while it starts or ends."""
    found = set(processes.named("EngineCore")) & set(processes.children([replica["pid"]]))
    if len(found) != 1:
        raise LookupError(f"replica {replica['replica']} (process {replica['pid']}) has {len(found)} engine cores")
    return found.pop()


def kill(pids: int | Iterable[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Those that have ended already are left alone."""
    for pid in [pids] if isinstance(pids, int) else pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
