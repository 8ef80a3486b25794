"""What several peers look at: what is under way, and the requests that came lately."""

from collections import deque

from benchmarks.simulator.fleet import PoolView, View


def ongoing(view: View, pool: PoolView) -> int:
    """Requests that are being served or wait."""
    return pool.num_running + view.num_queued + view.num_late


class Arrivals:
    """Rate and mean lengths of the requests of the last ``window_s``.

    Lengths of answers are the true ones of what has arrived: more than any of these policies would know.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._slices: deque[tuple[float, float, int, int, int]] = deque()

    def see(self, view: View) -> None:
        self._slices.append(
            (
                view.now_s,
                view.interval_s,
                len(view.arrived),
                sum(request.prompt_tokens for request in view.arrived),
                sum(request.output_tokens for request in view.arrived),
            )
        )
        while self._slices[0][0] <= view.now_s - self._window_s:
            self._slices.popleft()

    def mean(self, last_s: float | None = None) -> tuple[float, float, float]:
        """(requests per second, prompt tokens, output tokens) of the window, or of its last part."""
        newest_s = self._slices[-1][0]
        kept = [row for row in self._slices if last_s is None or row[0] > newest_s - last_s]
        number = sum(row[2] for row in kept)
        span_s = sum(row[1] for row in kept)
        if not number:
            return 0.0, 1.0, 1.0
        return number / span_s, sum(row[3] for row in kept) / number, sum(row[4] for row in kept) / number
