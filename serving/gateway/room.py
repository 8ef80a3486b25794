"""What requests hold of a gateway, and how much of it one tenant may.

Two things run out: requests in flight, and the bytes of their bodies. The last quarter of either is for those who have
less of it than others, so that whoever takes as much as there is locks nobody out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving.errors import Overloaded, RateLimited
from serving.tenancy.keys import ANONYMOUS

RETRY_AFTER_S = 1.0
_OPEN_SHARE = 0.75
"""Up to this share of what there is, nobody is asked how much of it is theirs."""


@dataclass(slots=True)
class Supply:
    """Something that there is ``most`` of; ``what`` names it in a refusal."""

    what: str
    most: int
    taken: int = 0
    _by_tenant: dict[str, int] = field(default_factory=dict)

    def take(self, tenant: str, number: int) -> None:
        """Raises Overloaded where there is no more; RateLimited in the last quarter, where the tenant would have more
        than its share: what is taken, divided among all who have some and one who may come. On a server without
        keys all callers are one tenant, and it may have everything."""
        taken, own = self.taken + number, self._by_tenant.get(tenant, 0) + number
        if taken > self.most:
            raise Overloaded(f"this server has as many {self.what} as it takes", retry_after_s=RETRY_AFTER_S)
        if taken > _OPEN_SHARE * self.most and own > number and tenant != ANONYMOUS:
            num_tenants = len(self._by_tenant) + (tenant not in self._by_tenant)
            if own * (num_tenants + 1) > taken:
                raise RateLimited(
                    f"{own - number} of this server's {self.what} are yours already, more than your share of them",
                    retry_after_s=RETRY_AFTER_S,
                )
        self.taken, self._by_tenant[tenant] = taken, own

    def give_back(self, tenant: str, number: int) -> None:
        self.taken -= number
        self._by_tenant[tenant] -= number
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


class Room:
    """One per gateway."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._requests = Supply("requests in flight", max_requests)
        self._bytes = Supply("bytes of requests in flight", max_bytes)

    @property
    def num_requests(self) -> int:
        return self._requests.taken

    @contextmanager
    def place(self, tenant: str) -> Iterator["Place"]:
        """For one request. Raises Overloaded, RateLimited."""
        self._requests.take(tenant, 1)
        place = Place(self._bytes, tenant)
        try:
            yield place
        finally:
            place.empty()
            self._requests.give_back(tenant, 1)


class Place:
    """What one request holds."""

    def __init__(self, supply: Supply, tenant: str) -> None:
        self._supply = supply
        self._tenant = tenant
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """More of the body has come. Raises Overloaded, RateLimited."""
        if num_bytes:
            self._supply.take(self._tenant, num_bytes)
            self._num_bytes += num_bytes

    def empty(self) -> None:
        if self._num_bytes:
            self._supply.give_back(self._tenant, self._num_bytes)
            self._num_bytes = 0
