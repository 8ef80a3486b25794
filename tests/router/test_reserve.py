"""What a flood leaves to the others."""

from dataclasses import dataclass

import pytest

from serving.router.reserve import ABOUT_S, Reserve


@dataclass
class Replica:
    num_running: int
    num_free_slots: int
    num_queue_slots: int = 0
    is_ready: bool = True
    is_fallback: bool = False


def _reserve(num_gateways: int = 1, **running: int) -> Reserve:
    """Tenants with so many requests running."""
    reserve = Reserve(num_gateways)
    for name, number in running.items():
        reserve.on_seen(name, 0.0)
        for _ in range(number):
            reserve.on_sent(name, 0.0)
    return reserve


def _holds_back(reserve: Reserve, num_free: int, name: str = "flood") -> bool:
    """With a hundred slots in all."""
    return reserve.holds_back(name, 0, 0, [Replica(100 - num_free, num_free)])


def test_who_is_alone_leaves_nothing() -> None:
    assert not _holds_back(_reserve(flood=9), 1)


@pytest.mark.parametrize(("name", "is_held"), [("flood", True), ("little", False), ("fresh", False)])
def test_only_who_has_more_than_half_is_held_back(name: str, is_held: bool) -> None:
    assert _holds_back(_reserve(flood=9, little=1, fresh=0), 1, name) is is_held
    assert not _holds_back(_reserve(flood=5, little=5), 1)


def test_what_waits_counts_too_because_another_gateway_may_have_sent_most() -> None:
    reserve = _reserve(flood=1, little=3)
    assert reserve.holds_back("flood", 20, 21, [Replica(4, 1)])
    assert not reserve.holds_back("little", 1, 21, [Replica(4, 1)])


def test_as_many_slots_stay_free_as_the_others_had_running_at_their_peaks_which_fade() -> None:
    reserve = _reserve(flood=9, little=3, few=1)
    for name in ("little", "little", "little", "few"):
        reserve.on_end(name)
    assert _holds_back(reserve, 4)
    assert not _holds_back(reserve, 5)
    reserve.tick(9.0)
    assert _holds_back(reserve, 1)
    assert not _holds_back(reserve, 2)


def test_what_others_have_running_need_not_stay_free_for_them() -> None:
    reserve = _reserve(flood=9, little=4)
    assert _holds_back(reserve, 1)
    assert not _holds_back(reserve, 2)
    reserve.tick(1000.0)
    assert not _holds_back(reserve, 2)


def test_each_gateway_keeps_what_all_of_them_need() -> None:
    reserve = _reserve(3, flood=9, little=1)
    assert not _holds_back(reserve, 2)
    reserve.on_end("little")
    assert _holds_back(reserve, 3)
    assert not _holds_back(reserve, 4)


def test_never_more_than_a_quarter_of_all_slots_is_kept() -> None:
    reserve = _reserve(9, flood=90, little=80)
    for _ in range(80):
        reserve.on_end("little")
    assert _holds_back(reserve, 25)
    assert not _holds_back(reserve, 26)


def test_places_in_an_engines_queue_and_replicas_that_are_not_ready_are_no_free_slots() -> None:
    queue, away = Replica(10, 2, num_queue_slots=2), Replica(0, 8, is_ready=False)
    assert _reserve(flood=9, little=1).holds_back("flood", 0, 0, [queue, away])


def test_nothing_is_held_back_from_fallback_pools() -> None:
    assert not _reserve(flood=9, little=1).holds_back("flood", 0, 0, [Replica(9, 1, is_fallback=True)])


def test_who_has_been_away_for_long_is_forgotten_unless_something_of_it_runs() -> None:
    reserve = _reserve(flood=9, little=0)
    reserve.on_seen("flood", ABOUT_S + 1.0)
    reserve.tick(ABOUT_S)
    assert _holds_back(reserve, 1)
    reserve.tick(ABOUT_S + 1.0)
    assert not _holds_back(reserve, 1)
    for _ in range(9):
        reserve.on_end("flood")
