"""How sure a figure is: the block bootstrap (Künsch 1989; here with blocks that do not overlap, Carlstein 1986).

Requests of one run are not independent: a slow second slows all of its requests. So what is drawn again is not the
requests but blocks of time, each with all that happened in it. A percentile's blocks are rows of a histogram, so that
a thousand resamples are one matrix product.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.histogram import quantiles_us

NUM_BLOCKS = 30
NUM_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 500
LEAST_BEYOND = 5
"""A percentile with fewer values beyond it gets no interval: there is nothing to draw again."""
_MOST_EMPTY = 0.05


def blocks_of(at_s: NDArray[np.float64], num_blocks: int = NUM_BLOCKS) -> NDArray[np.int64]:
    """The block of each moment: as many stretches of equal length, from the first moment to the last."""
    if not len(at_s):
        return np.zeros(0, dtype=np.int64)
    begin_s, span_s = at_s.min(), max(float(np.ptp(at_s)), 1e-9)
    found: NDArray[np.int64] = np.minimum(((at_s - begin_s) / span_s * num_blocks).astype(np.int64), num_blocks - 1)
    return found


def draw_rounds(rng: np.random.Generator, num_rounds: int, number: int = NUM_RESAMPLES) -> NDArray[np.int64]:
    """How often each round is drawn: [number, num_rounds]."""
    return rng.multinomial(num_rounds, np.full(num_rounds, 1.0 / num_rounds), number)


def draw_weights(
    rng: np.random.Generator,
    rounds: Sequence[int],
    number: int = NUM_RESAMPLES,
    picked: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """How often each block is drawn: [number, sum of rounds].

    ``rounds`` has the number of blocks of each round of the same measurement. With several, rounds are drawn first and
    then blocks within each, so that what differs between rounds counts too. ``picked`` are rounds that were drawn
    already, for two measurements whose rounds belong together.
    """
    if picked is None:
        picked = draw_rounds(rng, len(rounds), number)
    columns = []
    for place, num_blocks in enumerate(rounds):
        draws = rng.multinomial(picked[:, place] * num_blocks, np.full(num_blocks, 1.0 / num_blocks))
        columns.append(draws)
    return np.concatenate(columns, axis=1).astype(np.float64)


def resampled_quantiles_us(
    counts: NDArray[np.float64], buckets: NDArray[np.int64], shares: Sequence[float], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quantiles of each resample: counts [blocks, used] and weights [R, blocks] give [R, len(shares)]."""
    # By and by: all resamples of a long run's histogram at once would take gigabytes.
    parts = [weights[begin : begin + _RESAMPLES_AT_ONCE] for begin in range(0, len(weights), _RESAMPLES_AT_ONCE)]
    return np.concatenate([quantiles_us(part @ counts, buckets, shares) for part in parts])


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of resampled values. A resample that drew nothing but empty blocks is NaN and left out;
    where they are many, what was measured lies in too few moments to say anything: two NaN."""
    values, num_drawn = values[~np.isnan(values)], len(values)
    if len(values) < (1.0 - _MOST_EMPTY) * num_drawn or not len(values):
        return float("nan"), float("nan")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, (tail, 1.0 - tail))
    return float(low), float(high)
