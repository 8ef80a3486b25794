"""The process that holds Ray: started by `ballast up`, told what to start on stdin, telling what happens on stdout.

SIGINT or SIGTERM, or the end of `ballast up`, makes it stop everything, in order if the server was ready.

python -m serving.lifecycle.holder
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from serving.cluster import Cluster
from serving.errors import MachineError, OperatorError
from serving.lifecycle.launch import (
    DeploymentsEvent,
    DeploymentState,
    Event,
    FailedEvent,
    Launch,
    StepEvent,
    encode_event,
)
from serving.lifecycle.processes import signal_when_parent_ends

POLL_S = 0.5
#: Ray Serve's controller is restarted when it dies, and streams go on without it.
MAX_SILENCE_S = 60.0


class Interrupted(BaseException):
    """Asked to stop. Not an Exception, so that no library mistakes it for a failure of its own."""


class Holder:
    """Runs one cluster from start to stop."""

    def __init__(self, launch: Launch, events: BinaryIO) -> None:
        self._launch = launch
        self._events = events
        self._cluster = Cluster(launch.config, runtime_dir=Path(launch.runtime_dir))
        self._was_ready = False
        self._is_asked_to_stop = False

    def run(self) -> int:
        """Returns the exit code, when everything has stopped."""
        try:
            self._take_signals()
            self._cluster.start(
                lambda step: self._send(StepEvent(step)), preloads_engine=self._launch.engine != "scripted"
            )
            self._take_signals()  # Ray has put its own in place
            self._cluster.deploy(self._launch.engine, self._launch.engine_args)
            self._watch()
            return 0
        except Interrupted:
            return 0
        except OperatorError as error:
            self._send(FailedEvent(str(error), error.exit_code))
            return error.exit_code
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            self._cluster.stop(self._launch.config.server.shutdown_grace_s, in_order=self._was_ready)

    def _watch(self) -> None:
        previous: tuple[DeploymentState, ...] = ()
        heard_s = time.monotonic()
        while not self._is_asked_to_stop:  # an exception from a signal can get lost in Ray's callbacks
            try:
                found = tuple(self._cluster.deployments())
                heard_s = time.monotonic()
            except MachineError:
                if time.monotonic() - heard_s > MAX_SILENCE_S:
                    raise
                found = previous
            self._was_ready = self._was_ready or (bool(found) and all(state.is_healthy for state in found))
            if found != previous:
                self._send(DeploymentsEvent(found))
                previous = found
            time.sleep(POLL_S)

    def _send(self, event: Event) -> None:
        try:
            self._events.write(encode_event(event))
            self._events.flush()
        except BrokenPipeError:  # `ballast up` was killed
            raise Interrupted from None

    def _take_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if self._is_asked_to_stop:
            raise Interrupted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_asked_to_stop:
            self._is_asked_to_stop = True
            raise Interrupted


def main() -> int:
    """Whatever Ray prints goes to stderr, which is a log file; the real stdout carries events only."""
    signal_when_parent_ends(signal.SIGTERM, int(sys.argv[1]))
    events = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    return Holder(Launch.decode(sys.stdin.buffer.read()), events).run()


if __name__ == "__main__":
    sys.exit(main())
