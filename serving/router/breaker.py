"""A breaker per replica: who fails again and again is left alone for a while, then tried with one request."""

import weakref
from dataclasses import dataclass

from serving.errors import ReplicaSilent

NUM_FAILURES = 3
FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 60.0


@dataclass(slots=True)
class Breaker:
    """Closed until ``NUM_FAILURES`` failures in a row; then open for ``FIRST_PAUSE_S``, twice as long after each probe
    that fails; after the pause half open: one request is let through, and its outcome decides.
    """

    num_failures: int = 0
    open_until_s: float = 0.0
    is_probing: bool = False
    is_by_silence: bool = False
    """The last failure was an answer that never came."""
    _last_event: weakref.ref[Exception] | None = None

    @property
    def is_closed(self) -> bool:
        return self.num_failures < NUM_FAILURES

    def allows(self, now_s: float) -> bool:
        if self.is_closed:
            return True
        return not self.is_probing and now_s >= self.open_until_s

    def on_sent(self) -> bool:
        """A request goes to the replica. Whether it is the probe of a breaker that is half open: say so when it ends,
        for what was sent before the breaker opened decides nothing."""
        self.is_probing = not self.is_closed
        return self.is_probing

    def on_answer(self, *, is_probe: bool) -> None:
        """An answer has begun: of a probe that is enough, for its end may be an hour away."""
        if is_probe:
            self.on_success(is_probe=True)

    def on_success(self, *, is_probe: bool) -> None:
        if is_probe or self.is_closed:
            self.num_failures, self.open_until_s = 0, 0.0
            self.is_probing = False

    def on_failure(self, now_s: float, error: Exception | None = None) -> None:
        """The same ``error``, such as that of a lost connection, counts once, however many streams it broke. What was
        sent before the breaker opened says nothing new."""
        self.is_probing = False
        is_known = error is not None and self._last_event is not None and self._last_event() is error
        if is_known or now_s < self.open_until_s:
            return
        self._last_event = weakref.ref(error) if error is not None else None  # it holds the frames of all its streams
        self.is_by_silence = isinstance(error, ReplicaSilent)
        self.num_failures += 1
        num_pauses = self.num_failures - NUM_FAILURES
        if num_pauses >= 0:
            self.open_until_s = now_s + min(FIRST_PAUSE_S * 2 ** min(num_pauses, 30), MAX_PAUSE_S)

    def on_dropped(self, *, is_probe: bool) -> None:
        """The request has ended in a way that says nothing of the replica: its client left."""
        if is_probe:
            self.is_probing = False
