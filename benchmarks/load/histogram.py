"""High dynamic range histograms of times: three significant digits from a microsecond to an hour, merged by adding.

The bucket layout is that of HdrHistogram (Tene; http://hdrhistogram.org): linear below 2,048 µs, then 1,024 buckets per
power of two, so that a bucket's middle is within 0.05 % of what fell into it. The library of that name takes 2.3 µs
for each value, one at a time (0.10.8, measured), and cannot be resampled; here a request's gaps are added as one array,
and `benchmarks/runs/intervals.py` bootstraps the rows of `bucket_counts`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SUB_BITS = 11
_HALF_BITS = _SUB_BITS - 1
HIGHEST_US = 3_600_000_000
_MOST_BUCKETS = 23 * 2**_HALF_BITS


def bucket_of(values_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each value; those outside [0, one hour] go to the nearest end."""
    values = np.clip(values_us, 0, HIGHEST_US)
    _, exponent = np.frexp(values.astype(np.float64))
    shift = np.maximum(exponent.astype(np.int64) - _SUB_BITS, 0)
    buckets: NDArray[np.int64] = (shift << _HALF_BITS) + (values >> shift)
    return buckets


def middle_us(buckets: NDArray[np.int64]) -> NDArray[np.float64]:
    """The value that stands for each bucket."""
    shift = np.maximum((buckets >> _HALF_BITS) - 1, 0)
    low = (buckets - (shift << _HALF_BITS)) << shift
    middles: NDArray[np.float64] = low + ((1 << shift) - 1) / 2.0
    return middles


class Histogram:
    """Counts of times in microseconds."""

    def __init__(self) -> None:
        self._counts = np.zeros(_MOST_BUCKETS, dtype=np.int64)

    def add(self, values_us: Sequence[int] | NDArray[np.int64]) -> None:
        np.add.at(self._counts, bucket_of(np.asarray(values_us, dtype=np.int64)), 1)

    @property
    def number(self) -> int:
        return int(self._counts.sum())

    def sparse(self) -> tuple[list[int], list[int]]:
        """Buckets that hold something, and how much: what crosses a process boundary."""
        (buckets,) = np.nonzero(self._counts)
        return buckets.tolist(), self._counts[buckets].tolist()

    def merge(self, sparse: tuple[Sequence[int], Sequence[int]]) -> None:
        buckets, counts = sparse
        self._counts[np.asarray(buckets, dtype=np.int64)] += np.asarray(counts, dtype=np.int64)

    def clear(self) -> None:
        self._counts[:] = 0

    def quantile_us(self, share: float) -> float:
        """The least value that at least ``share`` of all are not above; NaN of nothing."""
        return float(quantiles_us(self._counts[None, :], np.arange(_MOST_BUCKETS), (share,))[0, 0])


def bucket_counts(
    values_us: NDArray[np.int64], rows: NDArray[np.int64], num_rows: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """One histogram per row (``rows`` says where each value belongs), only the buckets in use: counts
    [num_rows, num_used] and the used buckets [num_used]."""
    used, column = np.unique(bucket_of(values_us), return_inverse=True)
    flat = np.bincount(rows * len(used) + column, minlength=num_rows * len(used))
    return flat.reshape(num_rows, len(used)).astype(np.float64), used


def quantiles_us(
    counts: NDArray[np.float64] | NDArray[np.int64], buckets: NDArray[np.int64], shares: Sequence[float]
) -> NDArray[np.float64]:
    """Quantiles of each histogram: counts [R, B] over buckets [B] give [R, len(shares)]; NaN for an empty one."""
    found = np.full((len(counts), len(shares)), np.nan)
    if counts.shape[1] == 0:
        return found
    cumulated = np.cumsum(counts, axis=1)
    totals = cumulated[:, -1]
    middles = middle_us(buckets)
    for place, share in enumerate(shares):
        # A hair below the rank: sums of fractional bootstrap weights are not exact.
        rank = np.maximum(share * totals, 1e-9) * (1.0 - 1e-12)
        column = np.argmax(cumulated >= rank[:, None], axis=1)
        found[:, place] = np.where(totals > 0, middles[column], np.nan)
    return found
