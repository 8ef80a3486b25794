"""What one gateway has seen engines die of, the others know at once."""

import errno
import os
import time
from pathlib import Path

import pytest

from serving.gateway.deaths import SharedQuarantine
from serving.router.failover import Quarantine

NOW_S = 0.0


def gateway(path: Path) -> SharedQuarantine:
    return SharedQuarantine(Quarantine(max_deaths=2, hold_s=1e9), path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deaths"


def test_deaths_seen_by_two_gateways_add_up(path: Path) -> None:
    first, second = gateway(path), gateway(path)
    first.on_death(b"a", "r0")
    assert not second.is_empty
    assert not second.holds(b"a", NOW_S)
    second.on_death(b"a", "r1")
    assert first.holds(b"a", NOW_S)
    assert second.holds(b"a", NOW_S)


def test_one_death_seen_by_two_gateways_is_one(path: Path) -> None:
    first, second = gateway(path), gateway(path)
    first.on_death(b"a", "r0")
    second.on_death(b"a", "r0")
    assert not first.holds(b"a", NOW_S)


def test_what_one_gateway_has_served_no_other_holds(path: Path) -> None:
    first, second = gateway(path), gateway(path)
    first.on_death(b"a", "r0")
    first.on_death(b"a", "r1")
    second.on_success(b"a", NOW_S)
    assert first.is_empty


def test_serving_what_nobody_died_of_is_not_worth_a_line(path: Path) -> None:
    first = gateway(path)
    first.on_success(b"a", NOW_S)
    assert path.read_bytes() == b""


def test_a_death_counts_from_when_it_was_not_from_when_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_hold() -> SharedQuarantine:
        return SharedQuarantine(Quarantine(max_deaths=2, hold_s=60), path)

    clock = {"now_s": 1000.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now_s"])
    first = with_hold()
    first.on_death(b"a", "r0")
    clock["now_s"] = 1100.0
    second = with_hold()
    assert first.is_empty
    assert second.is_empty
    second.on_death(b"a", "r1")
    assert not first.holds(b"a", 1100.0), "the first death was too long ago"


def test_a_gateway_that_starts_later_knows_what_was_before(path: Path) -> None:
    first = gateway(path)
    first.on_death(b"a", "r0")
    first.on_death(b"a", "r1")
    assert gateway(path).holds(b"a", NOW_S)


def test_on_a_full_disk_the_gateway_that_saw_it_knows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    first, second = gateway(path), gateway(path)
    monkeypatch.setattr(os, "write", full)
    first.on_death(b"a", "r0")
    first.on_death(b"a", "r1")
    assert first.holds(b"a", NOW_S)
    assert second.is_empty
