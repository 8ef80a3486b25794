"""Arrivals are data from a seed, have the rate and the irregularity that was asked for, and follow steps and ramps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.arrivals import Phase, Surge, arrival_times_s, parse_duration_s, parse_phases, steady, surged
from benchmarks.load.mistake import BenchError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_constant_arrivals_are_evenly_spaced_and_as_many_as_asked_for() -> None:
    times = arrival_times_s(steady(20.0, 3.0), "constant", rng())
    assert len(times) == 60
    assert np.diff(times) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("process", "burstiness", "cv"), [("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5)]
)
def test_gaps_vary_as_the_process_says(process: str, burstiness: float, cv: float) -> None:
    times = arrival_times_s(steady(100.0, 400.0), process, rng(), burstiness)  # type: ignore[arg-type]
    gaps = np.diff(times)
    assert len(times) / 400.0 == pytest.approx(100.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_the_same_seed_gives_the_same_arrivals_and_another_one_others() -> None:
    first, again, other = (arrival_times_s(steady(9.0, 9.0), "poisson", rng(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


@given(
    st.lists(
        st.tuples(st.floats(0.1, 50.0), st.floats(0.0, 50.0), st.floats(0.0, 50.0)).map(lambda row: Phase(*row)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_each_phase_has_the_arrivals_under_its_line(phases: list[Phase]) -> None:
    times = arrival_times_s(phases, "constant", rng())
    assert (np.diff(times) >= -1e-9).all()
    begin_s = 0.0
    for phase in phases:
        here = ((times >= begin_s) & (times < begin_s + phase.span_s)).sum()
        assert here == pytest.approx(phase.num_expected, abs=1.0 + 1e-6)
        begin_s += phase.span_s


def test_a_ramp_has_three_quarters_of_its_arrivals_in_its_later_half() -> None:
    times = arrival_times_s(parse_phases("10s@0-40"), "constant", rng())
    assert (times >= 5.0).mean() == pytest.approx(0.75, abs=0.01)


def test_phases_are_read_as_written() -> None:
    assert parse_phases("60s@5,2m@5-50") == (Phase(60.0, 5.0, 5.0), Phase(120.0, 5.0, 50.0))
    assert [parse_duration_s(text) for text in ("250ms", "30s", "5m", "2h", "7")] == [0.25, 30.0, 300.0, 7200.0, 7.0]


@pytest.mark.parametrize("text", ["5@", "60s", "60s@", "60s@a", "60x@3", "60s@0", "0s@5", "60s@5.5.5", ""])
def test_what_is_no_phase_is_named(text: str) -> None:
    with pytest.raises(BenchError, match=f"'{text}'|duration"):
        parse_phases(text)


def test_a_surge_multiplies_the_rate_while_it_lasts() -> None:
    assert surged(steady(4.0, 10.0), [Surge(2.0, 3.0, 3.0)]) == (Phase(2, 4, 4), Phase(3, 12, 12), Phase(5, 4, 4))
    ramp = surged((Phase(10.0, 0.0, 10.0),), [Surge(8.0, 5.0, 2.0), Surge(9.0, 1.0, 2.0)])
    assert ramp == (Phase(8, 0, 8), Phase(1, 16, 18), Phase(1, 36, 40))
    assert surged(steady(4.0, 10.0), []) == steady(4.0, 10.0)
