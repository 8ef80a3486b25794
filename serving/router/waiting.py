"""A request that waits in a gateway, and the queue of those of one class: fair between tenants."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from serving.router.replica import Replica

_OUTPUT_WEIGHT = 2.0
"""What an output token counts against a prompt token in a tenant's account (Sheng et al., and most price lists)."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One request. The first attributes are what `choice.choose` asks for."""

    prompt_tokens: int
    expected_output_tokens: float
    deadline_s: float
    is_batch: bool
    allows_fallback: bool
    tenant: str
    replicas: Callable[[], Sequence[Replica]]
    """Those that may serve it, now."""
    send: Callable[[Replica], None]
    """Called once, with the replica of choice."""
    home: str | None = None
    cached_tokens: int = 0
    is_late: bool = False
    on_late: Callable[[], None] = lambda: None
    arrived_s: float = field(default_factory=time.monotonic)
    """In the line: its time there is bounded."""
    done: asyncio.Future[None] | None = None
    is_sent: bool = False
    """It has been, and has not ended."""

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + _OUTPUT_WEIGHT * self.expected_output_tokens


class FairQueue:
    """The requests of one class that wait, by tenant, each tenant's in order of deadline."""

    def __init__(self, accounts: dict[str, float]) -> None:
        self._accounts = accounts
        self._tenants: dict[str, deque[Waiting]] = {}
        self.num_waiting = 0
        self.prompt_tokens = 0

    def add(self, waiting: Waiting) -> None:
        own = self._tenants.setdefault(waiting.tenant, deque())
        self.num_waiting += 1
        self.prompt_tokens += waiting.prompt_tokens
        if not own or own[-1].deadline_s <= waiting.deadline_s:
            own.append(waiting)
            return
        place = next(index for index, other in enumerate(own) if other.deadline_s > waiting.deadline_s)
        own.insert(place, waiting)

    def first(self, besides: str | None = None) -> Waiting | None:
        """Who is next, ``besides`` the requests of that tenant."""
        tenants = self._tenants.keys() - {besides} if besides in self._tenants else self._tenants.keys()
        return self._tenants[min(tenants, key=self._standing)][0] if tenants else None

    def _standing(self, tenant: str) -> tuple[float, int]:
        """The least comes first. Who comes back is level with the least of those that wait, and before its flood."""
        return self._accounts.get(tenant, 0.0), len(self._tenants[tenant])

    def front(self) -> Iterator[Waiting]:
        """The first of each tenant, then the second of each, and so on."""
        rows = zip_longest(*self._tenants.values())
        return (waiting for row in rows for waiting in row if waiting is not None)

    def remove(self, waiting: Waiting) -> None:
        """It need not be there."""
        own = self._tenants.get(waiting.tenant)
        if own is None or waiting not in own:
            return
        own.remove(waiting)
        self.num_waiting -= 1
        self.prompt_tokens -= waiting.prompt_tokens
        if not own:
            del self._tenants[waiting.tenant]

    def last(self, tenant: str) -> Waiting:
        return self._tenants[tenant][-1]

    def num_of(self, tenant: str) -> int:
        return len(self._tenants.get(tenant, ()))

    @property
    def tenants(self) -> Iterator[str]:
        return iter(self._tenants)

    def __iter__(self) -> Iterator[Waiting]:
        return (waiting for own in self._tenants.values() for waiting in own)
