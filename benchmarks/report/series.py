"""How a round went over time: its rows by slices of equal length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.runs.rows import Rows
from benchmarks.runs.slo import Slo

MOST_SLICES = 120
_LEAST_REQUESTS = 4


@dataclass(frozen=True, slots=True)
class Series:
    """S slices, by when requests were intended; answers and failures by when they ended. NaN where there is nothing."""

    at_s: NDArray[np.float64]
    """Middle of each slice."""
    ttft_p50_ms: NDArray[np.float64]
    ttft_p99_ms: NDArray[np.float64]
    offered_per_s: NDArray[np.float64]
    answered_per_s: NDArray[np.float64]
    in_slo_per_s: NDArray[np.float64]
    failed_per_s: NDArray[np.float64]


def series(rows: Rows, slo: Slo) -> Series:
    """At most ``MOST_SLICES`` slices of at least a quarter of a second, and of a few requests each."""
    begin_s, end_s = rows.intended_s[0], rows.end_s.max()
    number = int(np.clip(min((end_s - begin_s) / 0.25, len(rows) / _LEAST_REQUESTS), 1, MOST_SLICES))
    edges = np.linspace(begin_s, np.nextafter(end_s, np.inf), number + 1)
    width_s = edges[1] - edges[0]
    began = np.clip(np.searchsorted(edges, rows.intended_s, side="right") - 1, 0, number - 1)
    ended = np.clip(np.searchsorted(edges, rows.end_s, side="right") - 1, 0, number - 1)
    ttft_ms = 1e3 * rows.ttft_s
    known = ~np.isnan(ttft_ms) & rows.is_plain
    medians, tails = np.full(number, np.nan), np.full(number, np.nan)
    for place in range(number):
        here = ttft_ms[known & (began == place)]
        if len(here):
            medians[place], tails[place] = np.quantile(here, (0.5, 0.99))

    def rate(slices: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.bincount(slices, minlength=number) / width_s
        return found

    return Series(
        at_s=(edges[:-1] + edges[1:]) / 2.0,
        ttft_p50_ms=medians,
        ttft_p99_ms=tails,
        offered_per_s=rate(began),
        answered_per_s=rate(ended[rows.is_ok]),
        in_slo_per_s=rate(ended[slo.is_met(rows)]),
        failed_per_s=rate(ended[rows.outcome == "error"]),
    )
