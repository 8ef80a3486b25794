"""What a mark in a run did to its requests: before it, from then on until all was as before, and after that.

Recovery is a change point. Every request that missed the SLO counts one, and every request counts less by the share
that missed before the mark; the sum rises while more is missed than before, and is highest when that ends (CUSUM; Page,
*Continuous inspection schemes*, Biometrika 1954). Where nothing was missed before, that is about the last that missed;
one that misses by chance long after does not count, in proportion to how many held meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.runs.rows import Rows
from benchmarks.runs.slo import Slo

LEAST_REQUESTS = 5
"""Before a mark and after it, to have something to compare; and after its recovery, to believe in it."""
_MS_PER_S = 1e3


@dataclass(frozen=True, slots=True)
class Effect:
    """What one mark did. ``recovery_s``: from the mark until the last request of the disturbance was intended, 0 where
    nothing more was missed than before; None: not before the next mark or the run's end, or nothing to compare."""

    recovery_s: float | None
    why_unknown: str | None
    before: dict[str, Any]
    during: dict[str, Any]
    after: dict[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        return {
            "recovery_s": self.recovery_s,
            "not_recovered_because": self.why_unknown,
            "before": self.before,
            "during": self.during,
            "after": self.after,
        }


def effects(rows: Rows, slo: Slo, marks_s: Sequence[float]) -> list[Effect]:
    """Of each mark, in their order in time; ``marks_s`` in seconds after the start, sorted.

    Those under way at a mark are among those that it has hit, and count with no earlier mark. What is before a mark
    begins where the one before it had been recovered from.
    """
    counts, missed = rows.counts, ~slo.is_met(rows)
    found: list[Effect] = []
    calm_from_s = -np.inf
    for at_s, until_s in pairwise([*marks_s, np.inf]):
        before = counts & (rows.intended_s >= calm_from_s) & (rows.intended_s < at_s) & (rows.end_s <= at_s)
        hit = counts & (rows.end_s > at_s) & (rows.intended_s < until_s) & (rows.end_s <= until_s)
        recovered_s, why = _recovered(rows.intended_s[hit], missed[hit], missed[before])
        end_s = until_s if why else max(at_s, recovered_s)
        during = hit & ((rows.intended_s < at_s) | (rows.intended_s <= end_s))
        recovery_s = None if why else round(end_s - at_s, 3)
        found.append(Effect(recovery_s, why, *(stretch(rows, slo, kept) for kept in (before, during, hit & ~during))))
        calm_from_s = at_s if why else float(np.nextafter(end_s, np.inf))
    return found


def _recovered(
    intended_s: NDArray[np.float64], missed: NDArray[np.bool_], missed_before: NDArray[np.bool_]
) -> tuple[float, str | None]:
    """When the excess of misses was highest, or why that cannot be said."""
    if len(missed_before) < LEAST_REQUESTS:
        return np.nan, "too few requests before it to compare with"
    if len(missed) < LEAST_REQUESTS:
        return np.nan, "too few requests after it to tell"
    # Of few, none missed is no proof of a share of 0: half a miss is added (Jeffreys' prior).
    share = (missed_before.sum() + 0.5) / (len(missed_before) + 1.0)
    excess = np.cumsum(missed - share)
    if excess.max() <= 0.0:
        return -np.inf, None
    last = int(np.argmax(excess))
    if len(excess) - 1 - last < LEAST_REQUESTS:
        return np.nan, "more was missed than before to the end of what follows it"
    return float(intended_s[last]), None


def stretch(rows: Rows, slo: Slo, kept: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures of some of the requests; null where there is nothing to say."""
    number = int(kept.sum())
    plain = kept & rows.is_plain
    ttft_ms = _MS_PER_S * rows.ttft_s[plain & ~np.isnan(rows.ttft_s)]
    e2e_ms = _MS_PER_S * rows.e2e_s[plain]
    return {
        "num_ok": int((kept & rows.is_ok).sum()),
        "num_error": int((kept & (rows.outcome == "error")).sum()),
        "share_in_slo": round(float(slo.is_met(rows)[kept].mean()), 5) if number else None,
        "ttft_p50_ms": _quantile(ttft_ms, 0.5),
        "ttft_p99_ms": _quantile(ttft_ms, 0.99),
        "ttft_max_ms": _quantile(ttft_ms, 1.0),
        "e2e_p50_ms": _quantile(e2e_ms, 0.5),
    }


def _quantile(values: NDArray[np.float64], share: float) -> float | None:
    return round(float(np.quantile(values, share, method="inverted_cdf")), 3) if len(values) else None
