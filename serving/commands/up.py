"""``ballast up``: start the server, show how far it is, watch it, and stop all of it."""

import http.client
import json
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import FrameType
from typing import assert_never

from serving.commands.settings import load_settings, overrides
from serving.commands.up_output import JsonOutput, Output, PlainOutput, TerminalOutput
from serving.commands.welcome import base_url, welcome
from serving.config import Config
from serving.errors import MachineError
from serving.gateway.auth import check_bind
from serving.lifecycle import cause
from serving.lifecycle.launch import ConfigEvent, DeploymentsEvent, DeploymentState, FailedEvent, Launch, StepEvent
from serving.lifecycle.log_file import LogFile
from serving.lifecycle.server import STOP_MARGIN_S, RayProcess, StateClaim, clear_away
from serving.lifecycle.start_progress import StartProgress, changes
from serving.machine import observe_machine
from serving.plan import plan, read_specs
from serving.replica import progress
from serving.tenancy.store import KeyStore

TICK_S = 0.1
READY_TIMEOUT_S = 2.0
START_PATIENCE_S = 5.0
"""What Ray may take to stop when nothing was served yet."""
INTERRUPTED_EXIT_CODE = 130


def run(arguments: Namespace) -> int:
    """Returns the exit code, when everything has stopped."""
    output = _output(arguments.json)
    path, config = load_settings(arguments)
    with StateClaim(config, path, overrides(arguments)) as claim:
        signals = _Signals()
        if (former := claim.ended_predecessor) is not None:
            output.say("cleaned_up", f"Cleared away what a killed server (process {former.pid}) had left.")
        num_keys = check(config)
        launch = Launch(config, str(claim.runtime_dir), arguments.engine, json.loads(arguments.engine_args))
        output.say("starting", f"Starting Ballast with {path}", config=str(path))
        echo_log = arguments.logs or not sys.stdout.isatty()
        server = _Server(launch, output, signals, echo_log=echo_log, needs_key=num_keys > 0)
        try:
            return server.run()
        finally:
            server.stop()


def check(config: Config) -> int:
    """See that the server could run here and may listen where it is told to; returns how many keys were ever created.

    Raises OperatorError.
    """
    server = config.server
    with KeyStore.open(server.state_dir) as store:
        num_keys = store.num_keys()
    check_bind(server.host, num_keys)
    endpoints = [(server.host, server.port), (server.admin_host, server.admin_port)]
    found = plan(config, observe_machine(server.state_dir, endpoints), read_specs(config))
    if found.errors:
        lines = [f"{error.path}: {error.message}\n  -> {error.action}" for error in found.errors]
        raise MachineError("\n".join(["This machine cannot run it:", *lines]))
    return num_keys


def _output(as_json: bool) -> Output:
    if as_json:
        return JsonOutput()
    return TerminalOutput() if sys.stderr.isatty() else PlainOutput()


class _Signals:
    """Counts how often somebody asked to stop. Nothing is interrupted: the loop looks several times a second."""

    def __init__(self) -> None:
        self.num_asked = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.num_asked += 1


class _Server:
    """One run of the server, seen from `ballast up`."""

    def __init__(self, launch: Launch, output: Output, signals: _Signals, *, echo_log: bool, needs_key: bool) -> None:
        server = launch.config.server
        self._launch = launch
        self._config = launch.config
        self._runtime_dir = Path(launch.runtime_dir)
        self._output = output
        self._signals = signals
        self._echo_log = echo_log
        self._needs_key = needs_key
        self._log = LogFile(server.log_path)
        self._ray_log = server.log_path.with_name("ray.log")
        self._process = RayProcess(launch, self._ray_log)
        self._progress = StartProgress()
        self._deployments: tuple[DeploymentState, ...] = ()
        self._is_ready = False
        self._is_changing = False

    def run(self) -> int:
        """Until somebody asks to stop (0), or it fails (raises OperatorError)."""
        began_s = time.monotonic()
        while not self._signals.num_asked:
            self._take_events(TICK_S)
            self._follow_log()
            if self._process.has_ended:
                raise MachineError(f"Ray ended unexpectedly: {self._last_words()}. Its output is in {self._ray_log}.")
            if not self._is_ready:
                self._show_progress()
                if self._answers():
                    self._be_ready(time.monotonic() - began_s)
        return 0 if self._is_ready else INTERRUPTED_EXIT_CODE

    def _be_ready(self, seconds: float) -> None:
        self._is_ready = True
        self._output.working([])
        words = welcome(self._config, seconds, needs_key=self._needs_key)
        self._output.say("ready", words, url=base_url(self._config), seconds=round(seconds, 1))

    def stop(self) -> None:
        """Stop everything: in order, or at once when asked a second time or when it takes too long."""
        self._output.working([])
        patience_s = self._config.server.shutdown_grace_s + STOP_MARGIN_S if self._is_ready else START_PATIENCE_S
        deadline_s = time.monotonic() + patience_s
        began_s = time.monotonic()
        if not self._process.has_ended:
            grace = f"requests in flight get up to {self._config.server.shutdown_grace_s:g} s; Ctrl-C stops at once"
            self._output.say("stopping", f"Stopping: {grace}." if self._is_ready else "Stopping.")
        self._process.ask_to_stop()
        num_asked = self._signals.num_asked
        while not self._process.has_ended and time.monotonic() < deadline_s and self._signals.num_asked == num_asked:
            self._process.events(TICK_S)
            self._follow_log()
        self._process.kill()
        clear_away(self._runtime_dir)
        self._process.close()
        self._log.close()
        self._output.say("stopped", f"Stopped after {time.monotonic() - began_s:.1f} s; nothing is left running.")

    def _take_events(self, timeout_s: float) -> None:
        now_s = time.time()
        for event in self._process.events(timeout_s):
            match event:
                case StepEvent(step):
                    self._progress.begin("", step, now_s)
                case DeploymentsEvent(deployments):
                    self._take_deployments(deployments, now_s)
                case ConfigEvent(message, is_settled):
                    self._is_changing = not is_settled
                    self._output.say("config", f"{time.strftime('%H:%M:%S')} {message}")
                case FailedEvent(message, exit_code):
                    error = MachineError(message)
                    error.exit_code = exit_code
                    raise error
                case _:
                    assert_never(event)

    def _take_deployments(self, deployments: tuple[DeploymentState, ...], now_s: float) -> None:
        before, self._deployments = self._deployments, deployments
        if self._is_ready:
            for label, words in () if self._is_changing else changes(before, deployments):
                self._output.say("deployment", f"{time.strftime('%H:%M:%S')} {label}: {words}", deployment=label)
            return
        self._progress.end("", now_s)
        for state in deployments:
            if state.has_failed:
                raise MachineError(self._why(state))
            if state.is_healthy:
                self._progress.end(state.label, now_s)
            elif state.label not in {was.label for was in before}:
                self._progress.begin(state.label, progress.WORDS[progress.PROCESS], now_s)

    def _show_progress(self) -> None:
        for state in self._deployments:
            files = sorted((self._runtime_dir / progress.FOLDER / state.name).glob("*"))
            for number, path in enumerate(files, 1):
                track = state.label if number == 1 else f"{state.label} #{number}"
                for at_s, step in progress.read_steps(path):
                    if step == progress.READY:
                        self._progress.end(track, at_s)
                    elif step != progress.PROCESS:  # it is shown from when Ray Serve says so
                        self._progress.begin(track, progress.WORDS[step], at_s)
        for ended in self._progress.take_ended():
            self._output.step_ended(ended)
        self._output.working(self._progress.current)

    def _answers(self) -> bool:
        """Whether every model takes requests; of one that keeps no replica, that the gateway lives must do."""
        states = {state.label: state for state in self._deployments}
        if "gateway" not in states or not states["gateway"].is_healthy:
            return False
        for model in self._config.models:
            kept = [states.get(f"{model.name}/{pool.name}") for pool in model.pools if pool.replicas.min]
            if kept and not any(state is not None and state.num_running for state in kept):
                return False
        keeps_replicas = any(pool.replicas.min for model in self._config.models for pool in model.pools)
        address = base_url(self._config).removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(address[0].strip("[]"), int(address[2]), timeout=READY_TIMEOUT_S)
        try:
            connection.request("GET", "/ready" if keeps_replicas else "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _follow_log(self) -> None:
        for line in self._log.new_lines():
            if self._echo_log:
                self._output.log_line(line)
        self._log.rotate()

    def _why(self, state: DeploymentState) -> str:
        """What kept a deployment from starting; the whole output of its processes is kept beside the log."""
        logs_dir = self._runtime_dir / "ray" / "session_latest" / "logs"
        texts = [path.read_text(errors="replace") for path in cause.worker_logs(logs_dir, state.message)]
        kept = self._config.server.log_path.with_name("failed-start.log")
        kept.write_text("\n".join([*texts, state.message]))
        found = cause.root_cause("\n".join(texts)) or cause.root_cause(state.message) or state.message.splitlines()[-1]
        return f"{state.label} could not be started: {found}\nThe whole story is in {kept}."

    def _last_words(self) -> str:
        text = self._ray_log.read_text(errors="replace")
        return cause.root_cause(text) or (text.strip().splitlines() or ["it said nothing"])[-1]
