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
from serving.config import Config
from serving.deployments import config_version
from serving.errors import MachineError, OperatorError
from serving.lifecycle.applying import Applying
from serving.lifecycle.control import Apply, Client, InForce, Listener, Report
from serving.lifecycle.launch import (
    ConfigEvent,
    DeploymentsEvent,
    DeploymentState,
    Event,
    FailedEvent,
    Launch,
    StepEvent,
    encode_event,
)
from serving.lifecycle.processes import signal_when_parent_ends

logger = logging.getLogger("ballast.lifecycle")

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
        self._runtime_dir = Path(launch.runtime_dir)
        self._cluster = Cluster(launch.config, runtime_dir=self._runtime_dir)
        self._in_force = InForce(launch.config, time.time())
        self._change: tuple[Applying, Client] | None = None
        self._has_told_config = False
        self._was_ready = False
        self._has_served = False
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
            self.tell_config()
            self._watch(Listener(self._runtime_dir))
            return 0
        except Interrupted:
            return 0
        except OperatorError as error:
            self._send(FailedEvent(str(error), error.exit_code))
            return error.exit_code
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            self._cluster.stop(self._launch.config.server.shutdown_grace_s, in_order=self._has_served)

    def _watch(self, listener: Listener) -> None:
        previous: tuple[DeploymentState, ...] = ()
        heard_s = time.monotonic()
        while not self._is_asked_to_stop:  # an exception from a signal can get lost in Ray's callbacks
            try:
                found = tuple(self._cluster.deployments()) or previous
                if (asked := listener.take()) is not None:
                    self._begin(*asked)
                self._follow_change()
                self.tell_config()
                heard_s = time.monotonic()
            except MachineError:
                if time.monotonic() - heard_s > MAX_SILENCE_S:
                    raise
                found = previous
            self._was_ready = self._was_ready or (bool(found) and all(state.is_healthy for state in found))
            self._has_served = self._has_served or self._was_ready or may_be_serving(found)
            if found != previous:
                self._send(DeploymentsEvent(found))
                previous = found
            time.sleep(POLL_S)

    def _begin(self, request: Apply, client: Client) -> None:
        """Take up a change of the config, or say why not."""
        if why := self._why_not(request):
            client.tell(Report("refused", f"{why}; try again"))
            client.close()
            return
        now_s = time.monotonic()
        try:
            change = Applying(self._cluster, self._in_force.config, request.config, request.timeout_s, now_s)
        except MachineError as error:
            client.tell(Report("failed", f"{error}; config {self._in_force.version} stays in force"))
            client.close()
            return
        self._send(ConfigEvent(f"config {config_version(request.config)} is being applied", is_settled=False))
        self._change = change, client

    def _why_not(self, request: Apply) -> str:
        if not self._was_ready:
            return "the server is still starting"
        if self._change is not None:
            return "another config is being applied"
        if request.base != self._in_force.version:
            return f"config {self._in_force.version} is in force by now, not {request.base}"
        return ""

    def _follow_change(self) -> None:
        if self._change is None:
            return
        change, client = self._change
        for report in change.look(time.monotonic()):
            if report.kind == "applied":
                self._put_in_force(change.config)
            if report.is_last:
                self._send(ConfigEvent(report.message, is_settled=True))
            client.tell(report)
        if change.has_ended:
            client.close()
            self._change = None

    def _put_in_force(self, config: Config) -> None:
        self._in_force = InForce(config, time.time())
        self._has_told_config = False
        self.tell_config()

    def tell_config(self) -> None:
        """Where `ballast status` and `apply` read it. A full disk is no reason to stop serving: it is tried again."""
        if self._has_told_config:
            return
        try:
            self._in_force.write(self._runtime_dir)
            self._has_told_config = True
        except OSError as error:
            logger.warning("the config in force could not be written to %s: %s", self._runtime_dir, error)

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


def may_be_serving(states: tuple[DeploymentState, ...]) -> bool:
    """Whether there may be requests to finish: a pool may still be coming up while another has long been serving."""
    running = {state.label for state in states if state.num_running}
    return "gateway" in running and len(running) > 1


def main() -> int:
    """Whatever Ray prints goes to stderr, which is a log file; the real stdout carries events only."""
    signal_when_parent_ends(signal.SIGTERM, int(sys.argv[1]))
    events = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    return Holder(Launch.decode(sys.stdin.buffer.read()), events).run()


if __name__ == "__main__":
    sys.exit(main())
