"""Slots that one tenant's flood leaves to the others.

A fair line alone does not keep tenants apart: who sends little would still wait, each time, until one of the flood's
long answers ends. So while several tenants are about, who has more than half of all that runs or waits may not take the
last free slots: as many stay free as the others had running at their recent peaks, up to a quarter of all. Nothing is
held back from a tenant that is alone, and no more than one slot for others who have used none lately.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

ABOUT_S = 60.0
"""A tenant is about for so long after each request."""
_PEAK_FADES_S = 6.0
"""Not long: what is kept free for somebody who has stopped is lost to all."""


class Replica(Protocol):
    """What is to be known of a replica."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def is_fallback(self) -> bool:
        """What a flood takes of a fallback pool, others had no claim to."""

    @property
    def num_running(self) -> int: ...

    @property
    def num_free_slots(self) -> int: ...

    @property
    def num_queue_slots(self) -> int:
        """How many of its free slots are places in its engine's own queue."""


@dataclass(slots=True)
class _Tenant:
    seen_s: float
    num_running: int = 0
    peak: float = 0.0
    """Of ``num_running``, fading."""


class Reserve:
    """Of one model, in one of ``num_gateways``, each of which sees its share of every tenant's requests. ``now_s`` is
    on the caller's clock."""

    def __init__(self, num_gateways: int = 1) -> None:
        self._num_gateways = num_gateways
        self._tenants: dict[str, _Tenant] = {}
        self._num_running = 0
        self._sum_of_peaks = 0.0
        self._faded_s = 0.0

    def on_seen(self, name: str, now_s: float) -> None:
        """One of its requests has come in."""
        self._tenants.setdefault(name, _Tenant(now_s)).seen_s = now_s

    def on_sent(self, name: str, now_s: float) -> None:
        """One of its requests runs."""
        self.on_seen(name, now_s)
        tenant = self._tenants[name]
        self._num_running += 1
        tenant.num_running += 1
        if tenant.num_running > tenant.peak:
            self._sum_of_peaks += tenant.num_running - tenant.peak
            tenant.peak = tenant.num_running

    def on_end(self, name: str) -> None:
        """One of its requests runs no more."""
        self._num_running -= 1
        self._tenants[name].num_running -= 1

    def tick(self, now_s: float) -> None:
        """Call about twice a second: peaks fade, and who has been gone for long is forgotten."""
        fade = math.exp(-max(0.0, now_s - self._faded_s) / _PEAK_FADES_S)
        self._faded_s = now_s
        for name, tenant in list(self._tenants.items()):
            tenant.peak = max(float(tenant.num_running), tenant.peak * fade)
            if not tenant.num_running and now_s - tenant.seen_s > ABOUT_S:
                del self._tenants[name]
        self._sum_of_peaks = sum(tenant.peak for tenant in self._tenants.values())

    def holds_back(self, name: str, num_waiting: int, num_all_waiting: int, replicas: Iterable[Replica]) -> bool:
        """Whether a request of this tenant must leave what slots are free to others. ``num_waiting`` of
        ``num_all_waiting`` requests that wait are its own."""
        tenant = self._tenants.get(name)
        if tenant is None or len(self._tenants) < 2:
            return False
        num_own = tenant.num_running + num_waiting
        num_others = self._num_running + num_all_waiting - num_own
        if num_own <= num_others:
            return False
        missing = self._sum_of_peaks - tenant.peak - (self._num_running - tenant.num_running)
        num_slots = num_free = 0
        for replica in replicas:
            if replica.is_ready and not replica.is_fallback:
                free = max(0, replica.num_free_slots - replica.num_queue_slots)
                num_free += free
                num_slots += replica.num_running + free
        return num_slots > 0 and num_free <= min(max(1.0, self._num_gateways * missing), num_slots // 4)
