"""Where a server's curve bends: the highest rate that holds the SLO, and the rate beyond which throughput stands still.

Pure functions of what rounds at several rates have found; intervals come from drawing rounds and blocks anew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.runs.intervals import NUM_RESAMPLES, interval


@dataclass(frozen=True, slots=True)
class Point:
    """One round: the rate that was asked for, the share in SLO and the answers per second that came of it.

    ``drawn_shares`` [R]: the share of each bootstrap resample of the round's blocks.
    """

    rate_per_s: float
    share: float
    drawn_shares: NDArray[np.float64]
    answered_per_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate per second with its 95 % interval. An end is infinite (0) where no tried rate missed (held) the SLO."""

    value: float
    low: float
    high: float


def highest_rate(points: Sequence[Point], objective: float, rng: np.random.Generator) -> Estimate:
    """The rate at which the share in SLO falls to ``objective``."""
    value, drawn = drawn_highest_rates(points, objective, rng)
    return Estimate(value, *ends(drawn))


def drawn_highest_rates(
    points: Sequence[Point], objective: float, rng: np.random.Generator
) -> tuple[float, NDArray[np.float64]]:
    """The rate at which the share in SLO falls to ``objective``, and that of each bootstrap resample [R].

    The shares are made to fall with the rate (isotonic regression, pool adjacent violators: Barlow et al. 1972) and
    read off between rates in their logarithm. Each resample draws the rounds of each rate anew, and a resample of each
    round drawn.
    """
    by_rate = sorted({point.rate_per_s for point in points})
    groups = [[point for point in points if point.rate_per_s == rate] for rate in by_rate]
    counts = np.array([len(group) for group in groups], dtype=np.float64)
    value = _crossing(
        by_rate, [float(np.mean([point.share for point in group])) for group in groups], counts, objective
    )
    means = np.stack([_drawn_means(group, rng) for group in groups], axis=1)
    return value, np.array([_crossing(by_rate, row, counts, objective) for row in means])


def ends(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of resampled values. Order statistics: infinite ends cannot be interpolated."""
    ordered = np.sort(drawn)
    tail = round(0.025 * len(ordered))
    return float(ordered[tail]), float(ordered[-tail - 1])


def _drawn_means(rounds: Sequence[Point], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of the rounds of one rate, drawn anew: [R]."""
    shares = np.stack([point.drawn_shares for point in rounds])
    shape = (NUM_RESAMPLES, len(rounds))
    found: NDArray[np.float64] = shares[rng.integers(0, len(rounds), shape), rng.integers(0, shares.shape[1], shape)]
    return np.asarray(found.mean(axis=1))


def _crossing(
    rates: Sequence[float], shares: Sequence[float] | NDArray[np.float64], counts: NDArray[np.float64], objective: float
) -> float:
    """Where the falling curve reaches ``objective``: 0 when it is always below, infinite when never."""
    falling = non_increasing(np.asarray(shares), counts)
    if falling[0] < objective:
        return 0.0
    below = np.flatnonzero(falling < objective)
    if not len(below):
        return math.inf
    right = int(below[0])
    drop = falling[right - 1] - falling[right]
    part = (falling[right - 1] - objective) / drop
    return float(math.exp(math.log(rates[right - 1]) * (1.0 - part) + math.log(rates[right]) * part))


def non_increasing(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest non-increasing sequence in weighted least squares."""
    pools: list[tuple[float, float, int]] = []
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        mean, weight, length = value, count, 1
        while pools and pools[-1][0] < mean:
            before, weight_before, length_before = pools.pop()
            mean = (mean * weight + before * weight_before) / (weight + weight_before)
            weight, length = weight + weight_before, length + length_before
        pools.append((mean, weight, length))
    return np.concatenate([np.full(length, mean) for mean, _, length in pools])


def knee(points: Sequence[Point], rng: np.random.Generator) -> Estimate:
    """The capacity c for which min(rate, c) is nearest to what was answered per second, in relative least squares.

    Below the knee a server answers what it is offered; above it, what it can.
    """
    rates = np.array([point.rate_per_s for point in points])
    answered = np.array([point.answered_per_s for point in points])
    value = _capacity(rates, answered)
    picks = rng.integers(0, len(points), (NUM_RESAMPLES, len(points)))
    drawn = np.array([_capacity(rates[picked], answered[picked]) for picked in picks])
    return Estimate(value, *interval(drawn))


def _capacity(rates: NDArray[np.float64], answered: NDArray[np.float64]) -> float:
    """By trying as many capacities as there is precision to gain: the error has one valley but no slope to follow."""
    tried = np.geomspace(max(1e-9, answered.min()), rates.max(), 400)
    errors = ((np.minimum(rates[None, :], tried[:, None]) / answered[None, :].clip(1e-9) - 1.0) ** 2).sum(axis=1)
    return float(tried[int(np.argmin(errors))])


def next_rate(
    points: Sequence[Point], objective: float, start_per_s: float, precision: float, growth: float = 2.0
) -> float | None:
    """The rate to try next: ``growth`` times more (less) until one rate misses (holds) the SLO, then the middle in
    logarithms.

    None: the gap between the highest that held and the lowest that missed is within ``precision`` (0.05: five percent).
    """
    if not points:
        return start_per_s
    held, missed = edge(points, objective)
    if missed is None:
        return growth * max(point.rate_per_s for point in points)
    if held is None:
        return min(point.rate_per_s for point in points) / growth
    return None if missed / held <= 1.0 + precision else math.sqrt(held * missed)


def edge(points: Sequence[Point], objective: float) -> tuple[float | None, float | None]:
    """The highest rate that holds the SLO and the lowest above it that does not, by shares made to fall with the rate;
    None: there is none."""
    by_rate = sorted({point.rate_per_s for point in points})
    counts = np.array([sum(point.rate_per_s == rate for point in points) for rate in by_rate], dtype=np.float64)
    means = [float(np.mean([point.share for point in points if point.rate_per_s == rate])) for rate in by_rate]
    num_held = int((non_increasing(np.asarray(means), counts) >= objective).sum())
    return (by_rate[num_held - 1] if num_held else None), (by_rate[num_held] if num_held < len(by_rate) else None)
