"""Whoever takes as much of a gateway as there is locks nobody out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Overloaded, RateLimited
from serving.gateway.room import Place, Room, Supply
from serving.tenancy.keys import ANONYMOUS


def flood(supply: Supply, tenant: str) -> int:
    """How much the tenant gets that takes all it can."""
    try:
        while True:
            supply.take(tenant, 1)
    except (Overloaded, RateLimited):
        return supply.taken


def test_the_last_quarter_is_for_those_who_have_less() -> None:
    supply = Supply("requests in flight", 100)
    assert flood(supply, "flood") == 75
    with pytest.raises(RateLimited, match="75 of this server's requests in flight are yours already"):
        supply.take("flood", 1)
    supply.take("quiet", 20)


@given(st.integers(1, 10))
def test_however_many_flood_one_who_comes_later_has_room(num_floods: int) -> None:
    supply = Supply("requests in flight", 200)
    for _ in range(200):
        for number in range(num_floods):
            try:
                supply.take(f"flood {number}", 1)
            except RateLimited:
                continue
    taken = supply.taken
    supply.take("quiet", 1)
    assert supply.taken == taken + 1


def test_nobody_gets_more_than_there_is() -> None:
    supply = Supply("requests in flight", 4)
    for number in range(4):
        supply.take(f"tenant {number}", 1)
    with pytest.raises(Overloaded, match="as many requests in flight as it takes"):
        supply.take("tenant 4", 1)


def test_without_keys_all_are_one_tenant_that_may_have_everything() -> None:
    assert flood(Supply("requests in flight", 100), ANONYMOUS) == 100


def fail(room: Room, place: Place) -> None:
    place.add(60)
    assert room.num_requests == 1
    with pytest.raises(Overloaded, match="bytes"):
        place.add(60)
    raise RuntimeError


def test_what_a_request_held_is_free_when_it_ends_however_it_ends() -> None:
    room = Room(max_requests=1, max_bytes=100)
    with pytest.raises(RuntimeError), room.place("a") as place:
        fail(room, place)
    assert room.num_requests == 0
    with room.place("a") as place:
        place.add(100)
