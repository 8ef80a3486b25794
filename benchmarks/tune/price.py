"""What a million tokens cost at the highest rate that holds the SLO, with an interval.

    cost = price of all replicas an hour / (highest rate in SLO [requests/s] × tokens of a request × 3600) × 10^6

Tokens are those of prompt and answer. The interval is the highest rate's (`benchmarks/runs/knee.py`), and no narrower
than the gap between the highest rate that held the SLO and the lowest that did not: where the share in SLO falls off a
cliff, rounds that agree say only that the cliff is in there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.runs.knee import Point, drawn_highest_rates, edge, ends

_TOKENS, _S_PER_HOUR = 1e6, 3600.0


@dataclass(frozen=True, slots=True)
class Cost:
    """USD per million tokens at the SLO; infinite where no tried rate held it, 0 where none missed. ``drawn`` [R]."""

    value: float
    drawn: NDArray[np.float64]
    rate_per_s: float
    rate_ci95: tuple[float, float]

    @property
    def ci95(self) -> tuple[float, float]:
        return ends(self.drawn)

    def over(self, other: "Cost") -> tuple[float, float, float]:
        """This cost by the other, and its interval. A draw in which neither end was reached counts against this one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = self.drawn / other.drawn
        low, high = ends(np.where(np.isnan(drawn), math.inf, drawn))
        is_known = math.isfinite(self.value) and math.isfinite(other.value) and other.value > 0.0
        return (self.value / other.value if is_known else math.inf), low, high


def price(points: Sequence[Point], objective: float, usd_per_hour: float, tokens_per_request: float, seed: int) -> Cost:
    """Of a candidate, from all of its rounds."""
    rng = np.random.default_rng(seed)
    value, drawn = drawn_highest_rates(points, objective, rng)
    held, missed = edge(points, objective)
    if held is not None and missed is not None:
        drawn = drawn * (missed / held) ** rng.uniform(-0.5, 0.5, len(drawn))
    with np.errstate(divide="ignore"):
        costs = usd_per_hour * _TOKENS / (drawn * tokens_per_request * _S_PER_HOUR)
    cost = usd_per_hour * _TOKENS / (value * tokens_per_request * _S_PER_HOUR) if value > 0.0 else math.inf
    return Cost(cost, costs, value, ends(drawn))


def rate_at(cost: float, usd_per_hour: float, tokens_per_request: float) -> float:
    """The rate at which a candidate of that price costs ``cost``: what it must hold to be no dearer."""
    return usd_per_hour * _TOKENS / (cost * tokens_per_request * _S_PER_HOUR)
