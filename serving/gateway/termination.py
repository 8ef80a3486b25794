"""SIGTERM to a gateway's process, heard at once and obeyed in order.

A worker process of Ray's runs Python's signal handlers on its main thread alone, and that thread waits in C++ for work
that a gateway never gets: the signal was heeded 10 to 30 s late, and then the process ended where it stood. So
``listen``, which Ray calls on the main thread before its loop, has the interpreter write each signal's number to a pipe
from within its C handler, and keeps Ray's own handler out.
"""

import asyncio
import os
import signal

import ray._private.utils
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

#: Of the environment of a gateway's process: has Ray call ``listen`` there.
ENVIRONMENT = {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{__name__}.listen"}

_reader: int | None = None


def listen() -> None:
    """Hear signals from now on. To be called on the main thread."""
    global _reader  # a process has one set of signal handlers, and the gateway meets what Ray called here nowhere else
    assert hasattr(ray._private.utils, "set_sigterm_handler"), "Ray has changed: see who handles its workers' SIGTERM"
    _reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _leave_it_to_the_gateway)
    ray._private.utils.set_sigterm_handler = _leave_it_to_the_gateway


async def told() -> None:
    """Until the process has got a SIGTERM since ``listen``; for ever where that was not called."""
    loop = asyncio.get_running_loop()
    is_told = asyncio.Event()

    def read(reader: int) -> None:
        if signal.SIGTERM in os.read(reader, 512):
            is_told.set()

    if _reader is not None:
        loop.add_reader(_reader, read, _reader)
    await is_told.wait()


def _leave_it_to_the_gateway(*_: object) -> None:
    pass
