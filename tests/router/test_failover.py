"""Failing over is bounded: in how much it adds, and in what it tries again."""

from hypothesis import given
from hypothesis import strategies as st

from serving.router.failover import WINDOW_S, Quarantine, RetryBudget


def test_retries_stay_under_their_share_of_requests() -> None:
    budget = RetryBudget(ratio=0.2, floor=0)
    for _ in range(10):
        budget.on_request(0.0)
    assert [budget.take(0.0) for _ in range(4)] == [True, True, False, False]


def test_the_floor_is_there_without_any_request() -> None:
    budget = RetryBudget(ratio=0.2, floor=3)
    assert [budget.take(0.0) for _ in range(4)] == [True, True, True, False]


def test_what_is_older_than_the_window_no_longer_counts() -> None:
    budget = RetryBudget(ratio=0.5, floor=0)
    budget.on_request(0.0)
    budget.on_request(0.0)
    assert budget.take(0.0)
    assert not budget.take(WINDOW_S + 0.1), "no request in the window, no retry"
    budget.on_request(WINDOW_S + 0.1)
    budget.on_request(WINDOW_S + 0.1)
    assert budget.take(WINDOW_S + 0.1)


@given(st.floats(0, 1), st.integers(0, 5), st.lists(st.booleans(), max_size=200))
def test_the_share_is_never_exceeded(ratio: float, floor: int, events: list[bool]) -> None:
    budget, num_requests, num_retries = RetryBudget(ratio, floor), 0, 0
    for is_request in events:
        if is_request:
            budget.on_request(0.0)
            num_requests += 1
        else:
            num_retries += budget.take(0.0)
    assert num_retries <= max(floor, ratio * num_requests + 1)


def test_a_request_is_held_after_its_second_death() -> None:
    quarantine = Quarantine(max_deaths=2, hold_s=60)
    assert quarantine.is_empty
    quarantine.on_death(b"a", "r0", 0.0)
    quarantine.on_death(b"a", "r0", 0.5)
    assert not quarantine.holds(b"a", 0.5), "many like it on one engine: one death"
    quarantine.on_death(b"a", "r1", 1.0)
    assert quarantine.holds(b"a", 1.0)
    assert not quarantine.holds(b"b", 1.0)


def test_what_is_served_in_the_end_is_innocent() -> None:
    quarantine = Quarantine(max_deaths=2, hold_s=60)
    for index in range(5):
        quarantine.on_death(b"a", f"r{index}", 0.0)
        quarantine.on_success(b"a")
    assert quarantine.is_empty


def test_it_is_let_go_in_time() -> None:
    quarantine = Quarantine(max_deaths=1, hold_s=60)
    quarantine.on_death(b"a", "r0", 0.0)
    assert quarantine.holds(b"a", 60.0)
    assert not quarantine.holds(b"a", 60.1)
    assert quarantine.is_empty


def test_it_forgets_the_oldest_when_it_is_full() -> None:
    quarantine = Quarantine(max_deaths=1, hold_s=60, max_entries=2)
    for name in (b"a", b"b", b"a", b"c"):
        quarantine.on_death(name, "r0", 0.0)
    assert [quarantine.holds(name, 0.0) for name in (b"a", b"b", b"c")] == [True, False, True]
