"""A histogram's quantiles are within its promise of the exact ones, and merging is adding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.histogram import HIGHEST_US, Histogram, bucket_counts, bucket_of, middle_us, quantiles_us

TIMES = st.lists(st.integers(0, HIGHEST_US), min_size=1, max_size=300)


@given(TIMES)
def test_a_buckets_middle_is_within_a_tenth_of_a_percent(values: list[int]) -> None:
    exact = np.asarray(values)
    assert (np.abs(middle_us(bucket_of(exact)) - exact) <= 0.0005 * exact + 1e-9).all()


@given(TIMES, st.floats(0.001, 1.0))
def test_quantiles_are_those_of_the_sorted_values(values: list[int], share: float) -> None:
    histogram = Histogram()
    histogram.add(values)
    exact = np.quantile(values, share, method="inverted_cdf")
    assert abs(histogram.quantile_us(share) - exact) <= 0.0005 * exact + 1e-9


@given(TIMES, TIMES)
def test_merging_is_adding(left: list[int], right: list[int]) -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    one.add(left)
    other.add(right)
    both.add(left + right)
    one.merge(other.sparse())
    assert one.sparse() == both.sparse()
    assert one.number == len(left) + len(right)


def test_what_is_out_of_range_goes_to_the_nearest_end() -> None:
    histogram = Histogram()
    histogram.add([-5, 10**12])
    assert histogram.quantile_us(0.5) == 0.0
    assert abs(histogram.quantile_us(1.0) / HIGHEST_US - 1.0) < 0.001


def test_an_empty_histogram_has_no_quantile() -> None:
    assert np.isnan(Histogram().quantile_us(0.5))
    assert np.isnan(quantiles_us(np.zeros((2, 0)), np.zeros(0, dtype=np.int64), (0.5,))).all()


def test_rows_are_histograms_of_their_own() -> None:
    counts, used = bucket_counts(np.array([5, 7, 7, 900]), np.array([0, 0, 1, 1]), 3)
    found = quantiles_us(counts, used, (0.5, 1.0))
    assert found[0].tolist() == [5.0, 7.0]
    assert found[1].tolist() == [7.0, 900.0]
    assert np.isnan(found[2]).all()
