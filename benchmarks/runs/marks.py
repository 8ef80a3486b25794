"""Faults at planned times of a run: what they are called on the command line, and the threads that make them happen.

A fault is made to happen in a thread of its own, so that one that takes long (a config that is applied) delays no
other. What came of each is a mark of the run.
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.faults.acts import engine_core, kill
from benchmarks.load.arrivals import Surge, parse_duration_s
from benchmarks.load.mistake import BenchError
from benchmarks.runs.options import find_record, read_config
from benchmarks.server import Replica, Server
from serving.change import plan_change
from serving.commands.apply import check_machine
from serving.config import Config
from serving.errors import OperatorError
from serving.lifecycle.control import Apply, InForce, apply
from serving.lifecycle.processes import start_ticks

_LAST_WORDS_S = 2.0
"""That a fault which is being done gets to end when the run has ended."""
APPLY_TIMEOUT_S = 300.0
"""After which a config that does not come up is taken back."""
FORMS = {
    "kill-engine": "SIGKILL of the engine core of the busiest replica",
    "stop-engine[:TIME]": "SIGSTOP of it; SIGCONT after TIME, else when the run ends",
    "kill-replica": "SIGKILL of the busiest replica's process",
    "drain-replica": "SIGTERM of it: it finishes or hands over what it has",
    "kill-gateway": "SIGKILL of the newest gateway",
    "drain-gateway": "SIGTERM of it: it finishes what it has",
    "scale:POOL=N": "N replicas in the pool, no more and no less, by a config that is applied",
    "apply:FILE": "what `ballast apply` would do with this config",
    "overload:Kx,TIME": "K times the rate for TIME",
}
"""How a fault is written, and what it is."""

_SURGE = re.compile(r"(?P<factor>[0-9.]+)x,(?P<span>.+)")
_SCALE = re.compile(r"(?P<pool>[^=]+)=(?P<number>[0-9]+)")
_NEEDS_VALUE = {"scale", "apply", "overload"}
_MAY_HAVE_VALUE = {"stop-engine"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of ``--at``: ``planned_s`` after the start of the run."""

    planned_s: float
    kind: str
    value: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.value}" if self.value else self.kind

    @property
    def surge(self) -> Surge | None:
        """What an overload does to the schedule; None of another fault. Raises BenchError."""
        if self.kind != "overload":
            return None
        found = _SURGE.fullmatch(self.value)
        try:
            factor = float(found["factor"]) if found else 0.0
        except ValueError:
            factor = 0.0
        if found is None or factor <= 0.0:
            raise BenchError(f"'{self.name}' is no overload; write overload:3x,10s for three times the rate for 10 s")
        return Surge(self.planned_s, parse_duration_s(found["span"]), factor)

    @property
    def span_s(self) -> float | None:
        """How long a stopped engine stands still; None: to the end of the run."""
        return parse_duration_s(self.value) if self.value else None

    @property
    def signal_number(self) -> signal.Signals:
        """What a process is killed, or told to end, by."""
        return signal.SIGTERM if self.kind.startswith("drain") else signal.SIGKILL

    @property
    def scale(self) -> tuple[str, int]:
        """Pool and number of replicas. Raises BenchError."""
        if (found := _SCALE.fullmatch(self.value)) is None:
            raise BenchError(f"'{self.name}' is no scaling; write scale:POOL=N, as in scale:cpu=2")
        return found["pool"], int(found["number"])


def parse_fault(text: str) -> Fault:
    """``10s=kill-engine``, ``40s=overload:3x,10s``. Raises BenchError."""
    at, equals, rest = text.partition("=")
    kind, _, value = rest.partition(":")
    kinds = {form.partition(":")[0].partition("[")[0] for form in FORMS}
    if not equals or kind not in kinds:
        raise BenchError(f"'{text}' is no fault; write TIME=FAULT with one of {', '.join(FORMS)}")
    if bool(value) != (kind in _NEEDS_VALUE) and not (value and kind in _MAY_HAVE_VALUE):
        form = next(form for form in FORMS if form.startswith(kind))
        raise BenchError(f"'{text}' is no fault; write it as TIME={form}")
    fault = Fault(parse_duration_s(at), kind, value)
    if kind == "overload":
        assert fault.surge
    elif kind == "scale":
        assert fault.scale
    elif kind == "stop-engine":
        assert fault.span_s is None or fault.span_s > 0.0
    return fault


@dataclass(slots=True)
class Mark:
    """What came of a fault. Times in seconds after the start of the run; None: it has not come to that."""

    name: str
    planned_s: float
    at_s: float | None = None
    done_s: float | None = None
    pid: int | None = None
    what: str = ""
    error: str | None = None

    @property
    def document(self) -> dict[str, Any]:
        return asdict(self)


class Site:
    """The running server that faults happen to. ``model`` is the one that load is sent to."""

    def __init__(self, server: Server, model: str) -> None:
        self.server, self.model = server, model
        self._stopped: dict[int, int | None] = {}

    def check(self, fault: Fault) -> None:
        """Raises BenchError, ConfigError: it could not be made to happen, as far as can be seen before."""
        if fault.kind in ("scale", "apply"):
            config = self._in_force()
            change = plan_change(config, self._wanted(fault, config))
            change.check_is_live(fault.value)
            if change.is_empty and fault.kind == "apply":
                raise BenchError(f"{fault.value} is the config that the server runs with; change something in it")
        elif fault.kind in ("kill-engine", "stop-engine"):
            try:
                engine_core(self._busiest())
            except LookupError as error:
                raise BenchError(f"no engine to hit: {error}; `ballast status` shows what runs") from error

    def perform(self, fault: Fault, mark: Mark, over: threading.Event) -> None:
        """Have it happen, and write into ``mark`` what and to whom. Returns when it is done, or the run is ``over``.

        Raises LookupError, OSError and OperatorError when it cannot be done.
        """
        match fault.kind:
            case "kill-engine":
                mark.pid, mark.what = self._engine("SIGKILL")
                kill(mark.pid)
            case "stop-engine":
                mark.pid, mark.what = self._engine("SIGSTOP")
                self._stopped[mark.pid] = start_ticks(mark.pid)
                kill(mark.pid, signal.SIGSTOP)
                if fault.span_s is not None:
                    over.wait(fault.span_s)
                if fault.span_s is not None or over.is_set():
                    self._go_on(mark.pid)
            case "kill-replica" | "drain-replica":
                victim, number = self._busiest(), fault.signal_number
                mark.pid, mark.what = victim["pid"], f"{number.name} of replica {victim['replica']}"
                kill(victim["pid"], number)
            case "kill-gateway" | "drain-gateway":
                if not (gateways := self.server.gateways()):
                    raise LookupError("no gateway runs")
                mark.pid, mark.what = gateways[-1], f"{fault.signal_number.name} of a gateway"
                kill(mark.pid, fault.signal_number)
            case "overload":
                assert fault.surge is not None
                mark.what = f"{fault.surge.factor:g} times the rate for {fault.surge.span_s:g} s"
                over.wait(fault.surge.span_s)
            case _:
                self._apply(fault, mark)

    def go_on(self) -> None:
        """Let every engine go on that was stopped and still stands."""
        for pid in list(self._stopped):
            self._go_on(pid)

    def _go_on(self, pid: int) -> None:
        if (ticks := self._stopped.pop(pid, None)) is not None and start_ticks(pid) == ticks:
            kill(pid, signal.SIGCONT)

    def _engine(self, how: str) -> tuple[int, str]:
        victim = self._busiest()
        return engine_core(victim), f"{how} of the engine core of replica {victim['replica']}"

    def _busiest(self) -> Replica:
        """Of the model's replicas that take requests the one whose engine has the most to do. Raises LookupError,
        OSError."""
        ready = self.server.replicas(self.model)
        if not ready:
            raise LookupError(f"no replica of {self.model} takes requests")
        return max(ready, key=_num_requests)

    def _in_force(self) -> Config:
        in_force = InForce.read(self.server.runtime_dir)
        assert in_force is not None, "it serves"
        return in_force.config

    def _wanted(self, fault: Fault, config: Config) -> Config:
        """The config that the fault gives the server. Raises BenchError, ConfigError."""
        if fault.kind == "apply":
            wanted = read_config(Path(fault.value))
            if wanted.server.state_dir != config.server.state_dir:
                raise BenchError(f"{fault.value} is of another server: its server.state_dir is not that of --config")
            record = find_record(config)
            assert record is not None, "it serves"
            return record.overriding(wanted)
        name, number = fault.scale
        data = config.model_dump(mode="json")
        pools = [pool for model in data["models"] for pool in model["pools"] if pool["name"] == name]
        if len(pools) != 1:
            known = ", ".join(pool.name for model in config.models for pool in model.pools)
            raise BenchError(f"'{fault.name}': {len(pools)} pools are called {name}; there are {known}")
        pools[0]["replicas"] = {"min": number, "max": max(1, number)}
        return Config.model_validate(data)

    def _apply(self, fault: Fault, mark: Mark) -> None:
        config = self._in_force()
        wanted = self._wanted(fault, config)
        check_machine(wanted)
        change = plan_change(config, wanted)
        mark.what = "; ".join(f"{key.path}: {key.old} -> {key.new}" for key in change.keys)
        for report in apply(self.server.runtime_dir, Apply(wanted, change.old_version, APPLY_TIMEOUT_S)):
            if report.kind in ("failed", "refused"):
                raise OperatorError(report.message)
            if report.is_last:
                return
        raise OperatorError("the server has ended meanwhile")


def _num_requests(replica: Replica) -> int:
    """As its engine has said last."""
    load = replica["load"] or {}
    return int(load.get("running", 0)) + int(load.get("waiting", 0))


class Saboteur:
    """Makes faults happen at their times. Use as a context; call it with the moment that the run began.

    ``tell`` hears of each mark when it begins and when it fails, from another thread. Leaving the context ends what is
    still waited for: a fault whose time has not come does not happen any more.
    """

    def __init__(self, site: Site, faults: Sequence[Fault], tell: Callable[[str], None]) -> None:
        self._site, self._tell = site, tell
        self._faults = sorted(faults, key=lambda fault: fault.planned_s)
        self.marks = [Mark(fault.name, fault.planned_s) for fault in self._faults]
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._site.go_on()
        for thread in self._threads:
            thread.join(_LAST_WORDS_S)

    def begin(self, started_s: float) -> None:
        """``started_s``: `time.monotonic` of the run's start. Only the first call counts."""
        if self._threads:
            return
        for fault, mark in zip(self._faults, self.marks, strict=True):
            thread = threading.Thread(target=self._happen, args=(fault, mark, started_s), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _happen(self, fault: Fault, mark: Mark, started_s: float) -> None:
        if self._over.wait(max(0.0, started_s + fault.planned_s - time.monotonic())):
            return
        mark.at_s = round(time.monotonic() - started_s, 3)
        self._tell(f"{mark.at_s:.1f} s: {mark.name}")
        try:
            self._site.perform(fault, mark, self._over)
        except (LookupError, OSError, OperatorError) as error:
            mark.error = str(error) or repr(error)
            self._tell(f"{mark.name} could not be done: {mark.error}")
        else:
            mark.done_s = round(time.monotonic() - started_s, 3)
