"""An engine hangs when it has work or owes an answer, and takes no step; nothing else is a hang."""

from serving.engine.base import EngineLoad
from serving.replica.watchdog import Watchdog


def is_hung(watchdog: Watchdog, found: EngineLoad, now_s: float, since_s: float) -> bool:
    """Asked often from ``since_s`` to ``now_s``."""
    for tenths in range(round(10 * since_s), round(10 * now_s)):
        watchdog.is_hung(found, tenths / 10)
    return watchdog.is_hung(found, now_s)


def load(iterations: int, unfinished: int) -> EngineLoad:
    return EngineLoad(iterations=iterations, unfinished=unfinished)


def test_an_engine_that_stands_still_with_work_hangs() -> None:
    watchdog = Watchdog(limit_s=10)
    assert not watchdog.is_hung(load(5, 1), 100.0)
    assert not is_hung(watchdog, load(5, 1), 110.0, since_s=100.0)
    assert watchdog.is_hung(load(5, 1), 110.1)


def test_a_replica_that_stood_still_itself_does_not_take_that_for_a_hang() -> None:
    """`docker pause`, a suspended machine: the engine has had no time either."""
    watchdog = Watchdog(limit_s=10)
    assert not is_hung(watchdog, load(5, 1), 104.0, since_s=100.0)
    assert not watchdog.is_hung(load(5, 1), 900.0)
    assert not is_hung(watchdog, load(5, 1), 905.9, since_s=900.1)
    assert is_hung(watchdog, load(5, 1), 906.2, since_s=906.0)


def test_a_step_starts_the_time_again() -> None:
    watchdog = Watchdog(limit_s=10)
    assert not watchdog.is_hung(load(5, 1), 100.0)
    assert not is_hung(watchdog, load(5, 1), 108.9, since_s=100.1)
    assert not is_hung(watchdog, load(6, 1), 118.0, since_s=109.0)
    assert is_hung(watchdog, load(6, 1), 119.2, since_s=118.1)


def test_an_idle_engine_may_stand_still() -> None:
    watchdog = Watchdog(limit_s=10)
    assert not any(watchdog.is_hung(load(5, 0), now_s) for now_s in (0.0, 100.0, 1000.0))
    assert not watchdog.is_hung(load(5, 1), 1001.0), "the time counts from when there was work"


def test_an_idle_engine_that_owes_an_answer_hangs() -> None:
    watchdog = Watchdog(limit_s=10)
    assert not watchdog.is_hung(load(5, 0), 100.0)
    watchdog.is_asked = True
    assert not is_hung(watchdog, load(5, 0), 110.0, since_s=100.0)
    assert watchdog.is_hung(load(5, 0), 110.1)
    watchdog.is_asked = False
    assert not watchdog.is_hung(load(5, 0), 110.2)


def test_a_slow_start_is_not_a_hang() -> None:
    assert not Watchdog(limit_s=10).is_hung(load(0, 0), 500.0)
