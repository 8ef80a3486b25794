"""What is shown while a run goes on: a table that moves at a terminal, a line every ten seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.load.histogram import Histogram
from benchmarks.load.workers import Live

_SHARES = (0.5, 0.9, 0.99)
_PLAIN_EVERY_S = 10.0
_RATE_OVER_S = 3.0


class View:
    """Use as a context; call it with each state. ``span_s``: how long a round should take, None: unknown."""

    def __init__(self, title: str, span_s: float | None, console: Console | None = None) -> None:
        self._title = title
        self._span_s = span_s
        self._console = console or Console(stderr=True, highlight=False)
        self._live = RichLive(console=self._console, refresh_per_second=4, transient=True)
        self._said_s = time.monotonic()
        self._history: list[tuple[float, int, int]] = []

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def retitle(self, title: str) -> None:
        self._title = title
        self._history.clear()

    def say(self, text: str) -> None:
        """A line that stays, above what moves."""
        self._console.print(Text(text, style="yellow"))

    def __call__(self, state: Live) -> None:
        now_s = time.monotonic()
        self._history.append((now_s, state.num_ended, state.num_tokens))
        while now_s - self._history[0][0] > _RATE_OVER_S and len(self._history) > 2:
            self._history.pop(0)
        if self._console.is_terminal:
            self._live.update(self.render(state))
        elif now_s - self._said_s >= _PLAIN_EVERY_S:
            self._said_s = now_s
            print(self._line(state), file=sys.stderr, flush=True)

    def _rates(self) -> tuple[float, float]:
        """Answers and tokens per second over the last moments."""
        (begin_s, ended, tokens), (end_s, ended_now, tokens_now) = self._history[0], self._history[-1]
        span_s = max(end_s - begin_s, 1e-9)
        return ((ended_now - ended) / span_s, (tokens_now - tokens) / span_s) if end_s > begin_s else (0.0, 0.0)

    def _line(self, state: Live) -> str:
        answers_per_s, tokens_per_s = self._rates()
        num_answered = state.num_ended - state.num_failed
        return (
            f"{self._title}: {state.elapsed_s:.0f} s, {num_answered} answered, {state.num_failed} failed, "
            f"{answers_per_s:.1f}/s, {tokens_per_s:.0f} tokens/s, "
            f"TTFT p50 {_ms(state.ttft, 0.5)} p99 {_ms(state.ttft, 0.99)}"
        )

    def render(self, state: Live) -> RenderableType:
        """The whole view."""
        answers_per_s, tokens_per_s = self._rates()
        share = (
            min(1.0, state.elapsed_s / self._span_s) if self._span_s else state.num_ended / max(1, state.num_planned)
        )
        left_s = state.elapsed_s * (1.0 - share) / share if share > 0.0 else 0.0
        bar = Table.grid(padding=(0, 1))
        num_left = state.num_sent - state.num_ended
        ending = f"{left_s:.0f} s left" if share < 1.0 else f"waiting for {num_left} answers" if num_left else "done"
        bar.add_row(Text(self._title, style="bold"), ProgressBar(1.0, share, width=30), f"{share:.0%}", ending)
        facts = Table.grid(padding=(0, 3))
        failed = Text(f"{state.num_failed} failed", style="red" if state.num_failed else "dim")
        facts.add_row(
            f"{state.num_sent} sent", f"{state.num_ended - state.num_failed} answered", failed,
            f"{state.num_sent - state.num_ended} under way", f"{answers_per_s:.1f} answers/s",
            f"{tokens_per_s:.0f} tokens/s",
        )  # fmt: skip
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        table.add_column("")
        for share_ in _SHARES:
            table.add_column(f"p{share_ * 100:g}", justify="right")
        for name, histogram in (("TTFT", state.ttft), ("ITL", state.itl), ("generator's delay", state.delay)):
            table.add_row(name, *(_ms(histogram, share_) for share_ in _SHARES))
        return Group(bar, facts, table, Text("Ctrl-C ends it and keeps what it has", style="dim"))


def _ms(histogram: Histogram, share: float) -> str:
    return f"{histogram.quantile_us(share) / 1e3:.1f} ms" if histogram.number else "–"


def quiet(_: Live) -> None:
    """For --json."""
