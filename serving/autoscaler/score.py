"""What a fleet would cost: its price, and the misses it is expected to let happen at the shadow price of a miss."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from serving.autoscaler.service_model import loss_per_s

_OVERLAP = 0.3
"""Share of a fallback replica's prefill time in which a second request spoils the first or itself. From the simulator:
0.09 on BurstGPT's lengths, 0.13 on Azure's conversations, 0.57 on its short code completions. It grows with the load,
because prompts that come together stop each other's answers."""
_LONGEST_FIRST = 0.6
"""Requests lost per mean request of work lost: long prompts are the first that no longer fit before their deadline.
From the simulator, one replica at 0.95 to 1.3 of its capacity on three mixes: 0.53 to 0.72."""
_NEGLIGIBLE = 6.0
"""Half the exponent beyond which a loss is not reckoned: exp(−12)."""
_CLUMPED = 3.0
"""What a primary pool that is up does not manage comes in clumps: it is this much denser than its mean."""
_FULL = 0.5
"""Load of a fallback replica, in prefill time, beyond which it takes nothing more."""


@dataclass(frozen=True, slots=True)
class PoolOffer:
    """One pool as the search sees it."""

    usd_per_s: float
    min_replicas: int
    max_replicas: int
    capacity_per_s: float
    """Of one replica, for the mix that it gets."""
    slack_s: float
    """What a request can wait there before its own prefill no longer fits in the TTFT SLO."""
    share: float
    """Of the requests, what it can serve inside the SLO."""
    prefill_s: float
    """Of a mean request."""
    is_fallback: bool


class Market:
    """All that a fleet's score depends on. Immutable but for what it has reckoned before."""

    def __init__(
        self, offers: tuple[PoolOffer, ...], loads: tuple[tuple[float, float], ...], dispersion: float, miss_usd: float
    ) -> None:
        """``loads``: (requests per second, probability), rising. ``dispersion``: see `loss_per_s`. ``miss_usd``: the
        shadow price of a missed request."""
        self.offers = offers
        self.loads = loads
        self.dispersion = dispersion
        self.miss_usd = miss_usd
        self._primary = [(index, offer) for index, offer in enumerate(offers) if not offer.is_fallback]
        self._fallback = [(index, offer) for index, offer in enumerate(offers) if offer.is_fallback]
        self._lost: dict[tuple[int, ...], list[tuple[float, float]]] = {}
        self._missed_per_s: dict[tuple[int, ...], float] = {}

    def usd_per_s(self, fleet: Sequence[int]) -> float:
        """What the replicas cost."""
        return sum(number * offer.usd_per_s for number, offer in zip(fleet, self.offers, strict=True))

    def missed_per_s(self, fleet: Sequence[int]) -> float:
        """Requests per second expected to miss."""
        fleet = tuple(fleet)
        missed_per_s = self._missed_per_s.get(fleet)
        if missed_per_s is None:
            missed_per_s = self._missed_per_s[fleet] = self._reckon(fleet)
        return missed_per_s

    def score(self, fleet: Sequence[int]) -> float:
        """US dollars per second, misses included."""
        return self.usd_per_s(fleet) + self.miss_usd * self.missed_per_s(fleet)

    def _reckon(self, fleet: tuple[int, ...]) -> float:
        primary = tuple(fleet[index] for index, _ in self._primary)
        lost = self._lost.get(primary)
        if lost is None:
            lost = self._lost[primary] = self._lost_by_primary(fleet)
        substitutes = [(fleet[index], offer) for index, offer in self._fallback if fleet[index]]
        density = _CLUMPED if any(primary) else 1.0
        missed_per_s = 0.0
        for lost_per_s, probability in lost:
            for number, offer in substitutes:
                lost_per_s -= _taken_over_per_s(number, offer, lost_per_s, density)
            missed_per_s += probability * lost_per_s
        return missed_per_s

    def _lost_by_primary(self, fleet: tuple[int, ...]) -> list[tuple[float, float]]:
        """(requests per second that the primary pools lose, probability), where that is worth reckoning."""
        capacity_per_s = room = 0.0
        for index, offer in self._primary:
            more_per_s = fleet[index] * offer.capacity_per_s
            capacity_per_s += more_per_s
            room += more_per_s * offer.slack_s
        if capacity_per_s <= 0.0:
            return [load for load in self.loads if load[0] > 0.0]
        slack_s = room / capacity_per_s
        least_per_s = capacity_per_s / (1.0 + _NEGLIGIBLE * self.dispersion / room)
        return [
            (_LONGEST_FIRST * loss_per_s(load_per_s, capacity_per_s, slack_s, self.dispersion), probability)
            for load_per_s, probability in self.loads[bisect_left(self.loads, (least_per_s,)) :]
        ]


def _taken_over_per_s(number: int, offer: PoolOffer, lost_per_s: float, density: float) -> float:
    """Of the requests that the primary pools lose, how many the fallback pool serves inside the SLO."""
    taken_per_s = min(lost_per_s * offer.share, number * _FULL / (density * offer.prefill_s))
    load = density * offer.prefill_s * taken_per_s / number
    spoilt = min(1.0, load * (_OVERLAP + load))
    return taken_per_s * (1.0 - spoilt)


def cheapest_fleet(market: Market, start: Sequence[int]) -> tuple[int, ...]:
    """The fleet with the lowest score that steps of one replica, or giving up a whole pool, lead to from ``start``.

    The score is convex but for the last replica of a pool, hence the second kind of step.
    """
    offers = market.offers
    fleet = tuple(
        min(offer.max_replicas, max(offer.min_replicas, number)) for number, offer in zip(start, offers, strict=True)
    )
    seeds = {fleet}
    for index, offer in enumerate(offers):
        # Alone: every other pool at its least, this one as big as the likeliest loads ask.
        alone = [other.min_replicas for other in offers]
        if offer.share > 0.0 and offer.max_replicas > 0:
            wanted = -(-market.loads[len(market.loads) // 2][0] // (0.9 * offer.capacity_per_s))
            alone[index] = int(min(offer.max_replicas, max(1.0, wanted, offer.min_replicas)))
        seeds.add(tuple(alone))
    best, best_usd = fleet, float("inf")
    for seed in seeds:
        found, found_usd = _descend(market, seed)
        if found_usd < best_usd:
            best, best_usd = found, found_usd
    return best


def _descend(market: Market, start: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
    fleet, usd = start, market.score(start)
    improved = True
    while improved:
        improved = False
        for index, offer in enumerate(market.offers):
            for step in (1, -1):
                number = fleet[index] + step
                while offer.min_replicas <= number <= offer.max_replicas:
                    candidate = (*fleet[:index], number, *fleet[index + 1 :])
                    candidate_usd = market.score(candidate)
                    if candidate_usd >= usd:
                        break
                    fleet, usd, improved = candidate, candidate_usd, True
                    number += step
    return fleet, usd
