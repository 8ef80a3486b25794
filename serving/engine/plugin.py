"""What Ballast changes inside vLLM's own processes, through vLLM's supported seams.

``register`` is a ``vllm.general_plugins`` entry point: vLLM calls it in the engine core and in every worker.
``BallastCpuWorker`` and ``BallastGpuWorker`` are named by ``worker_cls``. Nothing is patched.
"""

import ctypes
import multiprocessing
import os
import signal

PR_SET_PDEATHSIG = 1


def register() -> None:
    """Called by vLLM in each of its processes."""
    if multiprocessing.parent_process() is not None:
        die_with_parent()


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone: a killed replica leaves no engine
    behind.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before the call took effect
        os.kill(os.getpid(), signal.SIGKILL)
