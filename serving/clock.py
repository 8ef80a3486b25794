"""Where time comes from, so that a test can move it by hand."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one that agrees with calendars, one that never goes backwards."""

    def now_s(self) -> float:
        """Seconds since 1970-01-01 UTC. May jump when the machine's clock is set."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start. For durations and deadlines."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until ``advance`` or ``set_wall`` moves it."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self._now_s = now_s
        self._monotonic_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks."""
        assert seconds >= 0, "time does not run backwards; use set_wall for a clock that was set"
        self._now_s += seconds
        self._monotonic_s += seconds

    def set_wall(self, now_s: float) -> None:
        """Set the wall clock, as NTP or an operator would; the monotonic clock does not notice."""
        self._now_s = now_s
