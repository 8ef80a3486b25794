"""What `ballast up` shows: words with a spinner at a terminal, plain lines elsewhere, or JSON lines.

Words go to stderr and JSON to stdout, so that a container's log collector reads nothing but JSON lines from stdout.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from serving.lifecycle.start_progress import Step

REMIND_S = 15.0
"""How often a plain log says what a start is still busy with."""


class Output(Protocol):
    """Where `ballast up` reports to."""

    def say(self, event: str, words: str, **facts: object) -> None:
        """Something happened: ``words`` for people, ``event`` and ``facts`` for a script."""

    def step_ended(self, step: Step) -> None: ...

    def working(self, steps: Sequence[Step]) -> None:
        """What is being done now; called several times a second during a start, with nothing once it is over."""

    def log_line(self, line: str) -> None:
        """A line of the server's JSON log."""

    def close(self) -> None: ...


class TerminalOutput:
    """For a person: finished steps stay, what is being done stands in one line that moves."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None

    def say(self, event: str, words: str, **facts: object) -> None:
        self._console.print(escape(words))

    def step_ended(self, step: Step) -> None:
        self._console.print(
            f"  [green]done[/green]  {escape(step.label)} [dim]{step.seconds(step.began_s):.1f} s[/dim]"
        )

    def working(self, steps: Sequence[Step]) -> None:
        if not steps:
            self.close()
            return
        now_s = time.time()
        text = " · ".join(f"{step.label} {step.seconds(now_s):.0f} s" for step in steps)
        if self._status is None:
            self._status = self._console.status(escape(text), refresh_per_second=5)
            self._status.start()
        self._status.update(escape(text))

    def log_line(self, line: str) -> None:
        self._console.print(escape(line))

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


class PlainOutput:
    """For a file or a pipe: one line per finished step, and a reminder while one takes long."""

    def __init__(self) -> None:
        self._reminded_s = time.monotonic()

    def say(self, event: str, words: str, **facts: object) -> None:
        _print(words, sys.stderr)

    def step_ended(self, step: Step) -> None:
        self._reminded_s = time.monotonic()
        _print(f"  done  {step.label} {step.seconds(step.began_s):.1f} s", sys.stderr)

    def working(self, steps: Sequence[Step]) -> None:
        if not steps or time.monotonic() - self._reminded_s < REMIND_S:
            return
        self._reminded_s = time.monotonic()
        now_s = time.time()
        text = ", ".join(f"{step.label} ({step.seconds(now_s):.0f} s)" for step in steps)
        _print(f"  still busy with {text}", sys.stderr)

    def log_line(self, line: str) -> None:
        _print(line, sys.stdout)

    def close(self) -> None:
        pass


class JsonOutput:
    """For a script: every event is one JSON object on stdout."""

    def say(self, event: str, words: str, **facts: object) -> None:
        _print(json.dumps({"event": event, "message": words, **facts}), sys.stdout)

    def step_ended(self, step: Step) -> None:
        self.say(
            "step", f"{step.label} done", track=step.track, step=step.name, seconds=round(step.seconds(step.began_s), 3)
        )

    def working(self, steps: Sequence[Step]) -> None:
        pass

    def log_line(self, line: str) -> None:
        _print(line, sys.stdout)

    def close(self) -> None:
        pass


def _print(line: str, stream: TextIO) -> None:
    """A reader that has left hears no more. That is no reason to stop a server, or to cut its drain short."""
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
