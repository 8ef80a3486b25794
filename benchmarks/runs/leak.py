"""Does something grow? A robust slope with its interval: Theil and Sen's (Sen 1968), the median of all pairs' slopes.

Samples a second apart are no independent witnesses either: the interval draws blocks of time anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.runs.intervals import interval

_MOST_SAMPLES = 150
_NUM_RESAMPLES = 200
_NUM_BLOCKS = 12
_S_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per hour with its 95 % interval, and what it grows from."""

    per_hour: float
    low: float
    high: float
    level: float

    def grows(self, least_per_hour: float) -> bool:
        """Whether it surely grows, and by more than is of interest."""
        return self.low > 0.0 and self.per_hour > least_per_hour


def slope_of(at_s: Sequence[float], values: Sequence[float], rng: np.random.Generator) -> Slope | None:
    """None of fewer than ``2 * _NUM_BLOCKS`` samples. Many samples are thinned by medians."""
    if len(at_s) < 2 * _NUM_BLOCKS:
        return None
    times, levels = _thinned(np.asarray(at_s), np.asarray(values))
    block = np.minimum((np.arange(len(times)) * _NUM_BLOCKS) // len(times), _NUM_BLOCKS - 1)
    drawn = np.empty(_NUM_RESAMPLES)
    for place in range(_NUM_RESAMPLES):
        picked = np.concatenate([np.flatnonzero(block == each) for each in rng.integers(0, _NUM_BLOCKS, _NUM_BLOCKS)])
        drawn[place] = _theil_sen(times[picked], levels[picked])
    low, high = interval(drawn)
    return Slope(
        _theil_sen(times, levels) * _S_PER_HOUR, low * _S_PER_HOUR, high * _S_PER_HOUR, float(np.median(levels))
    )


def _thinned(
    times: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(times) <= _MOST_SAMPLES:
        return times, values
    parts = np.array_split(np.arange(len(times)), _MOST_SAMPLES)
    return np.array([times[part].mean() for part in parts]), np.array([np.median(values[part]) for part in parts])


def _theil_sen(times: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    left, right = np.triu_indices(len(times), 1)
    apart = times[right] - times[left]
    kept = apart != 0.0
    return float(np.median((values[right] - values[left])[kept] / apart[kept])) if kept.any() else 0.0
