import time

import pytest

from serving.clock import Clock, ManualClock, SystemClock


def test_the_system_clock_reads_the_machines_clocks() -> None:
    clock: Clock = SystemClock()
    assert abs(clock.now_s() - time.time()) < 60
    assert clock.monotonic_s() <= time.monotonic()


def test_a_manual_clock_moves_only_by_hand() -> None:
    clock = ManualClock(now_s=100.0)
    assert (clock.now_s(), clock.monotonic_s()) == (100.0, 0.0)
    clock.advance(2.5)
    assert (clock.now_s(), clock.monotonic_s()) == (102.5, 2.5)


def test_setting_the_wall_clock_leaves_the_monotonic_clock_alone() -> None:
    clock = ManualClock(now_s=100.0)
    clock.set_wall(40.0)
    assert (clock.now_s(), clock.monotonic_s()) == (40.0, 0.0)


def test_a_manual_clock_does_not_run_backwards() -> None:
    with pytest.raises(AssertionError):
        ManualClock().advance(-1.0)
