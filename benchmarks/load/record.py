"""What became of each request: one JSON line, and running sums for whoever watches.

Times are seconds after the start of the run. A request has four beginnings: ``intended_s`` (when the schedule wanted it
gone), ``dispatched_s`` (when the generator got round to it), ``sent_s`` (when a connection and a free slot had been
found) and ``first_byte_s``. Latency from the first is what a user sees; service time, from ``sent_s``, is what most
tools call latency, and hides whatever a stalled server makes its clients hold back (coordinated omission).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Literal

import orjson

from benchmarks.load.answer import Answer
from benchmarks.load.histogram import Histogram
from benchmarks.load.schedule import Planned

Outcome = Literal["ok", "error", "cancelled", "interrupted"]
_FLUSH_LINES = 200
_US_PER_S = 1e6


@dataclass(frozen=True, slots=True)
class Moments:
    """When a request was intended, dispatched and over; `time.monotonic` seconds."""

    intended_s: float
    dispatched_s: float
    end_s: float


@dataclass(slots=True)
class Progress:
    """Running sums of one worker since its last report, cheap enough to send twice a second."""

    num_sent: int = 0
    num_ended: int = 0
    num_failed: int = 0
    num_events: int = 0
    num_tokens: int = 0


class Recorder:
    """Writes the lines and keeps the sums. ``started_s``: what times count from, set before the first request."""

    def __init__(self, file: BinaryIO) -> None:
        self.started_s = 0.0
        self.progress = Progress()
        self.ttft = Histogram()
        self.itl = Histogram()
        self.delays_us: list[int] = []
        """Of dispatching, since the last report."""
        self._file = file
        self._lines: list[bytes] = []
        self._ttft_us: list[int] = []
        self._itl_us: list[int] = []

    def dispatched(self, delay_s: float) -> None:
        self.progress.num_sent += 1
        self.delays_us.append(round(delay_s * _US_PER_S))

    def ended(self, planned: Planned, moments: Moments, answer: Answer, outcome: Outcome, error: str | None) -> None:
        """One request is over, in whatever way."""
        times = answer.output_s
        gaps_us = [round((later - earlier) * _US_PER_S) for earlier, later in pairwise(times)]
        progress = self.progress
        progress.num_ended += 1
        progress.num_failed += outcome == "error"
        progress.num_events += len(times)
        progress.num_tokens += answer.output_tokens
        if times:
            self._ttft_us.append(round((times[0] - moments.intended_s) * _US_PER_S))
        self._itl_us += gaps_us
        row = {
            "index": planned.index,
            "session": planned.session,
            "turn": planned.turn,
            "kind": planned.kind.name.lower(),
            "is_slow": planned.is_slow,
            "outcome": outcome,
            "status": answer.status or None,
            "error": error,
            "finish_reason": answer.finish_reason,
            "request_id": answer.headers.get("x-request-id") or answer.id,
            "pool": answer.headers.get("x-ballast-pool"),
            "fallback": answer.headers.get("x-ballast-fallback"),
            "intended_s": self._since(moments.intended_s),
            "dispatched_s": self._since(moments.dispatched_s),
            "sent_s": self._since(answer.sent_s),
            "first_byte_s": self._since(answer.first_byte_s),
            "first_token_s": self._since(times[0] if times else None),
            "last_token_s": self._since(times[-1] if times else None),
            "end_s": self._since(moments.end_s),
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
            "output_tokens": answer.output_tokens,
            "itl_us": gaps_us,
        }
        self._lines.append(orjson.dumps(row))
        if len(self._lines) >= _FLUSH_LINES:
            self.flush()

    def _since(self, at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - self.started_s, 6)

    def report(self) -> dict[str, object]:
        """What happened since the last report, as plain values; starts anew."""
        self.ttft.add(self._ttft_us)
        self.itl.add(self._itl_us)
        progress = self.progress
        found: dict[str, object] = {
            "num_sent": progress.num_sent,
            "num_ended": progress.num_ended,
            "num_failed": progress.num_failed,
            "num_events": progress.num_events,
            "num_tokens": progress.num_tokens,
            "ttft": self.ttft.sparse(),
            "itl": self.itl.sparse(),
            "delays_us": self.delays_us,
        }
        self.progress, self.delays_us, self._ttft_us, self._itl_us = Progress(), [], [], []
        self.ttft.clear()
        self.itl.clear()
        return found

    def flush(self) -> None:
        if self._lines:
            self._file.write(b"\n".join(self._lines) + b"\n")
            self._lines.clear()
        self._file.flush()


def outcome_of(planned: Planned, answer: Answer) -> tuple[Outcome, str | None]:
    """Whether an answer that has ended is whole, and what is wrong with it if not."""
    if planned.cancel_after and not answer.is_done and len(answer.output_s) >= planned.cancel_after:
        return "cancelled", None
    problem = answer.problem()
    return ("ok", None) if problem is None else ("error", problem)
