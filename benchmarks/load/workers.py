"""The generator: worker processes that each send their part of a schedule, and the parent that hears from them."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load.drive import Drive, Manner
from benchmarks.load.histogram import Histogram
from benchmarks.load.mistake import BenchError
from benchmarks.load.prompts import Speech
from benchmarks.load.record import Recorder
from benchmarks.load.schedule import Schedule
from benchmarks.load.target import Target

_REPORT_EVERY_S = 0.5
_READY_TIMEOUT_S = 60.0
_GC_THRESHOLD = 50_000
_LEAD_S = 0.2
"""From the last worker's ready to the start of the clock: all of them must have heard it."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know."""

    target: Target
    speech: Speech
    manner: Manner
    schedule: Schedule
    rows: Path
    """File that its lines go to."""


@dataclass(slots=True)
class Live:
    """The run as far as it has come, all workers together."""

    num_planned: int
    started_s: float = 0.0
    num_sent: int = 0
    num_ended: int = 0
    num_failed: int = 0
    num_events: int = 0
    num_tokens: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    delay: Histogram = field(default_factory=Histogram)

    @property
    def elapsed_s(self) -> float:
        return max(0.0, time.monotonic() - self.started_s)

    def add(self, report: dict[str, Any]) -> None:
        for name in ("num_sent", "num_ended", "num_failed", "num_events", "num_tokens"):
            setattr(self, name, getattr(self, name) + report[name])
        self.ttft.merge(report["ttft"])
        self.itl.merge(report["itl"])
        self.delay.add(report["delays_us"])


@dataclass(frozen=True, slots=True)
class Effort:
    """What the generator itself did: how late it was, and how busy. Of the busiest worker."""

    num_workers: int
    dispatch_delay_p50_ms: float
    dispatch_delay_p99_ms: float
    loop_lag_p99_ms: float
    cpu_share: float
    """CPU seconds per second of the busiest worker; 1: it had no time left."""

    def complaint(self, most_delay_ms: float, counts_delay: bool = True) -> str | None:
        """Why what was measured is the generator rather than the server; None: it is not.

        ``counts_delay``: whether requests had times to leave at (an open loop).
        """
        found = []
        if counts_delay and self.dispatch_delay_p99_ms > most_delay_ms:
            found.append(f"p99 of the dispatch delay is {self.dispatch_delay_p99_ms:.1f} ms")
        if self.loop_lag_p99_ms > most_delay_ms:
            found.append(f"p99 of its event loops' lag is {self.loop_lag_p99_ms:.1f} ms")
        if not found:
            return None
        return (
            f"the load generator was the bottleneck: {' and '.join(found)}, over the {most_delay_ms:g} ms allowed. "
            f"Use more --workers ({self.num_workers} now) or a machine of its own, or lower the rate; "
            "--max-delay-ms allows more"
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """A run that is over. ``rows``: one file of JSON lines per worker."""

    rows: Sequence[Path]
    effort: Effort
    live: Live
    is_interrupted: bool


def default_num_workers() -> int:
    """One per core: the machine's cores are shared with the server only where somebody chose to run both there."""
    return max(1, min(4, len(os.sched_getaffinity(0))))


def send(job: Job, folder: Path, num_workers: int, watch: Callable[[Live], None]) -> Sent:
    """Send the whole schedule; ``watch`` is called about twice a second.

    Ctrl-C ends the run and keeps what it has. Raises BenchError when a worker dies.
    """
    num_workers = min(num_workers, job.schedule.num_sessions)
    if job.manner.concurrency is not None:
        num_workers = min(num_workers, job.manner.concurrency)
    live = Live(len(job.schedule))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [folder / f"requests-{worker}.jsonl" for worker in range(num_workers)]
    with _workers(job, rows) as pipes:
        for pipe in pipes:
            _hear(pipe, _READY_TIMEOUT_S)
        live.started_s = time.monotonic() + _LEAD_S
        for pipe in pipes:
            pipe.send(live.started_s)
        endings, is_interrupted = _follow(pipes, live, watch)
    lag = Histogram()
    for ending in endings:
        lag.merge(ending["lag"])
    effort = Effort(
        num_workers=num_workers,
        dispatch_delay_p50_ms=round(live.delay.quantile_us(0.5) / 1e3, 3),
        dispatch_delay_p99_ms=round(live.delay.quantile_us(0.99) / 1e3, 3),
        loop_lag_p99_ms=round(lag.quantile_us(0.99) / 1e3, 3),
        cpu_share=round(max((ending["cpu_share"] for ending in endings), default=0.0), 3),
    )
    return Sent(rows, effort, live, is_interrupted)


@contextlib.contextmanager
def _workers(job: Job, rows: Sequence[Path]) -> Iterator[list[Connection]]:
    """Processes with their ends of pipes; none outlives the block."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    try:
        for worker, path in enumerate(rows):
            ours, theirs = context.Pipe()
            part = replace(
                job,
                manner=job.manner.part(worker, len(rows)),
                schedule=job.schedule.part(worker, len(rows)),
                rows=path,
            )
            process: BaseProcess = context.Process(target=_work, args=(part, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield pipes
        for process in processes:
            process.join(_READY_TIMEOUT_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
            process.close()
        for pipe in pipes:
            pipe.close()


def _hear(pipe: Connection, timeout_s: float) -> dict[str, Any]:
    try:
        if pipe.poll(timeout_s):
            message: dict[str, Any] = pipe.recv()
            return message
    except EOFError:
        pass
    raise BenchError("a worker of the load generator has died; what it printed stands above. Is there memory left?")


def _follow(
    pipes: Sequence[Connection], live: Live, watch: Callable[[Live], None]
) -> tuple[list[dict[str, Any]], bool]:
    """Until all workers have said their last; whether Ctrl-C has ended it."""
    endings: list[dict[str, Any]] = []
    is_interrupted = False
    left = list(pipes)
    while left:
        try:
            for pipe in wait(left, timeout=_REPORT_EVERY_S):
                assert isinstance(pipe, Connection)
                message = _hear(pipe, 0.0)
                live.add(message)
                if "lag" in message:
                    endings.append(message)
                    left.remove(pipe)
            watch(live)
        except KeyboardInterrupt:
            if is_interrupted:
                raise
            is_interrupted = True
            for pipe in left:
                with contextlib.suppress(BrokenPipeError):
                    pipe.send(None)
    return endings, is_interrupted


def allow_many_connections() -> None:
    """Raise this process's limit of open files to what it may have: each request under way is a socket."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _work(job: Job, pipe: Connection) -> None:
    """A worker process's life. Ctrl-C is its parent's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_many_connections()
    # A collection stops the clock that everything is measured with: seldom, and never over what was imported.
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    uvloop.run(_drive(job, pipe))


async def _drive(job: Job, pipe: Connection) -> None:
    pipe.send({})
    started_s = await asyncio.to_thread(pipe.recv)
    with job.rows.open("wb") as file:
        recorder = Recorder(file)
        drive = Drive(job.target, job.speech, job.manner, recorder)
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), _stop, drive, pipe)
        reports = asyncio.create_task(_report(recorder, pipe))
        cpu_s, began_s = time.process_time(), max(started_s, time.monotonic())
        await drive.run(job.schedule, started_s)
        share = (time.process_time() - cpu_s) / max(1e-3, time.monotonic() - began_s)
        reports.cancel()
        loop.remove_reader(pipe.fileno())
        pipe.send({**recorder.report(), "lag": drive.lag.sparse(), "cpu_share": share})


async def _report(recorder: Recorder, pipe: Connection) -> None:
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        recorder.flush()
        pipe.send(recorder.report())


def _stop(drive: Drive, pipe: Connection) -> None:
    """The parent says to stop, or is gone."""
    try:
        pipe.recv()
    except EOFError:
        sys.exit(1)
    drive.stop()
