"""What bounds failing over: how much extra work it may make, and which requests are not tried again."""

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 10.0


@dataclass(slots=True)
class RetryBudget:
    """Retries of the last ten seconds stay under ``ratio`` of its requests, or under ``floor`` where that is more.

    When everything fails, retrying everything doubles the load on what is left (Envoy's retry budgets: 20 %). The
    floor lets a quiet server move the streams of a replica that died.
    """

    ratio: float
    floor: int
    _requests: deque[float] = field(default_factory=deque)
    _retries: deque[float] = field(default_factory=deque)

    def on_request(self, now_s: float) -> None:
        self._requests.append(now_s)
        _forget(self._requests, now_s)

    def take(self, now_s: float) -> bool:
        """Whether one more retry is within the budget; it counts if so."""
        _forget(self._requests, now_s)
        _forget(self._retries, now_s)
        if len(self._retries) >= max(self.floor, self.ratio * len(self._requests)):
            return False
        self._retries.append(now_s)
        return True


def _forget(times_s: deque[float], now_s: float) -> None:
    while times_s and times_s[0] < now_s - WINDOW_S:
        times_s.popleft()


@dataclass(slots=True)
class Quarantine:
    """Requests, by fingerprint, that were in flight on engines that died: after ``max_deaths`` engines one is not tried
    for ``hold_s``, unless it was served in the meantime.

    One request that kills its engine, retried by us and again by its client, would take down a fleet.
    """

    max_deaths: int
    hold_s: float
    max_entries: int = 10_000
    _deaths: dict[bytes, tuple[frozenset[str], float]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self._deaths

    def on_death(self, fingerprint: bytes, replica: str, now_s: float) -> None:
        """A replica's engine died while it worked on this request; several of its kind may have been there."""
        self.forget(now_s)
        replicas, _ = self._deaths.pop(fingerprint, (frozenset[str](), 0.0))  # the newest entry is the last one
        self._deaths[fingerprint] = (replicas | {replica}, now_s)
        if len(self._deaths) > self.max_entries:
            del self._deaths[next(iter(self._deaths))]

    def forget(self, now_s: float) -> None:
        """Let go of what has been held for long enough."""
        while self._deaths and now_s - next(iter(self._deaths.values()))[1] > self.hold_s:
            del self._deaths[next(iter(self._deaths))]

    def on_success(self, fingerprint: bytes) -> None:
        """It was served: no engine dies of it."""
        self._deaths.pop(fingerprint, None)

    def num_deaths(self, fingerprint: bytes, now_s: float) -> int:
        replicas, last_s = self._deaths.get(fingerprint, (frozenset[str](), 0.0))
        if replicas and now_s - last_s > self.hold_s:
            del self._deaths[fingerprint]
            return 0
        return len(replicas)

    def holds(self, fingerprint: bytes, now_s: float) -> bool:
        return self.num_deaths(fingerprint, now_s) >= self.max_deaths
