"""Sends one worker's part of a schedule, in this event loop.

Open loop: each session leaves at its time, whatever became of those before. Closed loop: ``concurrency`` sessions are
under way at once, and the next is intended to leave when one has ended.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.load.alarm import Alarm
from benchmarks.load.answer import Answer
from benchmarks.load.client import Client
from benchmarks.load.histogram import Histogram
from benchmarks.load.prompts import Speech
from benchmarks.load.record import Moments, Recorder, outcome_of
from benchmarks.load.schedule import Planned, Schedule
from benchmarks.load.target import Target

_LAG_EVERY_S = 0.02
_AFTER_FAILURE_S = 0.1
"""That a client of a closed loop waits when it got no answer."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a schedule is sent.

    ``concurrency``: sessions at once; in an open loop, requests beyond it wait in the client, which counts as latency
    (None: no bound). ``span_s`` ends a closed loop. ``timeout_s`` is what one request may take.
    """

    concurrency: int | None = None
    span_s: float | None = None
    think_s: float = 0.0
    timeout_s: float = 600.0

    def part(self, worker: int, num_workers: int) -> "Manner":
        """One worker's share of the concurrency."""
        if self.concurrency is None:
            return self
        share = (self.concurrency + num_workers - 1 - worker) // num_workers
        return replace(self, concurrency=share)


class Drive:
    """One run of one part. ``lag`` is how late this event loop wakes up: a slow generator shows there first."""

    def __init__(self, target: Target, speech: Speech, manner: Manner, recorder: Recorder) -> None:
        self._client = Client(target, speech.endpoint)
        self._speech = speech
        self._manner = manner
        self._recorder = recorder
        self._slots = asyncio.Semaphore(manner.concurrency) if manner.concurrency else None
        self._running: set[asyncio.Task[object]] = set()
        self._main: asyncio.Task[None] | None = None
        self._is_stopped = False
        self.lag = Histogram()

    async def run(self, part: Schedule, started_s: float) -> None:
        """Returns when all have been answered, or `stop` has cut it short. ``started_s``: `time.monotonic`."""
        self._recorder.started_s = started_s
        lag = asyncio.create_task(self._measure_lag())
        self._main = asyncio.create_task(self._open(part) if part.is_open else self._closed(part))
        try:
            await asyncio.wait({self._main})
            if not self._main.cancelled():
                self._main.result()
            while self._running:
                await asyncio.wait(self._running)
        finally:
            lag.cancel()
            self._client.close()
            self._recorder.flush()

    def stop(self) -> None:
        """Send no more; what is under way is given up and recorded as interrupted."""
        self._is_stopped = True
        for task in (self._main, *self._running):
            if task is not None:
                task.cancel()

    async def _open(self, part: Schedule) -> None:
        alarm = Alarm()
        try:
            for session in part.sessions():
                intended_s = self._recorder.started_s + session[0].at_s
                question = self._speech.question(session[0])
                body = self._speech.body(session[0], [question])
                await alarm.wait_until(intended_s)
                self._start(self._session(session, intended_s, question, body))
        finally:
            alarm.close()

    def _start(self, session: "asyncio._CoroutineLike[object]") -> None:
        task = asyncio.create_task(session)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _closed(self, part: Schedule) -> None:
        assert self._manner.concurrency is not None
        # By time, the sessions may be too few: then they begin again, with other words.
        laps = itertools.count() if self._manner.span_s else range(1)
        sessions = itertools.chain.from_iterable(part.sessions(lap) for lap in laps)
        alarm = Alarm()
        await alarm.wait_until(self._recorder.started_s)
        alarm.close()
        for _ in range(self._manner.concurrency):
            self._start(self._clients_life(sessions))

    async def _clients_life(self, sessions: Iterator[Sequence[Planned]]) -> None:
        """One session after another, until time or sessions run out."""
        free_s = self._recorder.started_s
        end_s = free_s + self._manner.span_s if self._manner.span_s else float("inf")
        while free_s < end_s and not self._is_stopped and (session := next(sessions, None)):
            question = self._speech.question(session[0])
            is_whole = await self._session(session, free_s, question, self._speech.body(session[0], [question]))
            if not is_whole:  # a server that refuses at once would be asked thousands of times a second
                await asyncio.sleep(_AFTER_FAILURE_S)
            free_s = time.monotonic()

    async def _session(self, session: Sequence[Planned], intended_s: float, question: str, body: bytes) -> bool:
        """The turns of one conversation, the first of which is due. Whether all of them were answered."""
        said = [question]
        for place, planned in enumerate(session):
            answer = Answer(keeps_text=len(session) > 1)
            await self._request(planned, intended_s, body, answer)
            is_whole = answer.problem() is None
            if place + 1 == len(session) or self._is_stopped or not is_whole:
                return is_whole  # nobody goes on with a conversation that broke off
            intended_s = time.monotonic() + self._manner.think_s
            said += ["".join(answer.text), self._speech.question(session[place + 1])]
            body = self._speech.body(session[place + 1], said)
            await asyncio.sleep(intended_s - time.monotonic())
        return True

    async def _request(self, planned: Planned, intended_s: float, body: bytes, answer: Answer) -> None:
        dispatched_s = time.monotonic()
        self._recorder.dispatched(dispatched_s - intended_s)
        try:
            if self._slots is not None:
                await self._slots.acquire()
            try:
                async with asyncio.timeout(self._manner.timeout_s):
                    await self._client.ask(body, answer, planned.cancel_after, planned.is_slow)
            finally:
                if self._slots is not None:
                    self._slots.release()
            outcome, error = outcome_of(planned, answer)
        except TimeoutError:
            outcome, error = "error", f"no end within {self._manner.timeout_s:g} s"
        except asyncio.CancelledError:
            self._recorder.ended(
                planned, Moments(intended_s, dispatched_s, time.monotonic()), answer, "interrupted", "interrupted"
            )
            raise
        self._recorder.ended(planned, Moments(intended_s, dispatched_s, time.monotonic()), answer, outcome, error)

    async def _measure_lag(self) -> None:
        alarm = Alarm()
        try:
            while True:
                due_s = time.monotonic() + _LAG_EVERY_S
                await alarm.wait_until(due_s)
                self.lag.add([round((time.monotonic() - due_s) * 1e6)])
        finally:
            alarm.close()
