"""What a fleet would cost: its price, and the misses it is expected to let happen at the shadow price of a miss."""

from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

from serving.autoscaler.demand import Outlook, ceiling_per_s
from serving.autoscaler.shadow_fleets import Foresight

_LONGEST_FIRST = 0.45
"""Requests that miss per mean request of work that no longer fits: long prompts are the first to go. From the
simulator, fleets of one to three replicas on real and reconstructed traces: 0.32 to 0.56."""
_CLUMP = 0.3
"""What primary pools that are up do not manage comes in clumps: at this share of their capacity, now and then."""
_FULL = 0.5
"""Load of a fallback replica, in prefill time, beyond which it takes nothing more."""


class PoolOffer(NamedTuple):
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
    current: int
    start_usd_per_s: float
    """What one more than `current` costs beside its price: its start, spread over the time that it will stay."""
    stop_usd_per_s: float
    """What one fewer costs: the start that it will take to get it back, spread over the time that it will be gone."""
    spoilt_share: float
    """Of the answers, those short enough that one more prompt in the middle spoils their TPOT."""
    is_fallback: bool


class MissPrice(NamedTuple):
    """Shadow price of a missed request."""

    usd: float
    usd_without_primary: float
    """In a fleet without any primary replica. Higher while the budget is being overspent: what a fallback pool alone
    misses it misses all the time."""


class Market:
    """All that a fleet's score depends on. Immutable but for what it has reckoned before."""

    def __init__(
        self, offers: tuple[PoolOffer, ...], seen: Outlook, foresight: Foresight, rate_per_s: float, miss: MissPrice
    ) -> None:
        """``rate_per_s``: demand to plan for, in mean requests: what ``foresight`` says, or more."""
        self.offers = offers
        self.rate_per_s = rate_per_s
        self.miss = miss
        self._seen = seen
        self._foresight = foresight
        self._ceiling_per_s = ceiling_per_s(seen, rate_per_s)
        self._prices = [offer.usd_per_s for offer in offers]
        self._capacities = [0.0 if offer.is_fallback else offer.capacity_per_s for offer in offers]
        self._changes = [(offer.current, offer.start_usd_per_s, offer.stop_usd_per_s) for offer in offers]
        self._fallback = [(index, _substitute(offer)) for index, offer in enumerate(offers) if offer.is_fallback]
        self._inevitable = foresight.share_lost(self._ceiling_per_s, rate_per_s)
        self._minutes: list[tuple[float, float]] = []
        self._scores: dict[tuple[int, ...], float] = {}
        self._missed: dict[tuple[int, ...], float] = {}

    def at_present(self) -> "Market":
        """The same, for the present demand where that is more than was foretold."""
        present_per_s = self._seen.present_per_s
        if present_per_s <= self._foresight.forecast_per_s:
            return self
        return Market(self.offers, self._seen, self._foresight, present_per_s, self.miss)

    def usd_per_s(self, fleet: Sequence[int]) -> float:
        """What the replicas cost."""
        return float(sum(map(mul, fleet, self._prices)))

    def score(self, fleet: Sequence[int]) -> float:
        """US dollars per second, changes and misses included."""
        fleet = tuple(fleet)
        known_usd = self._scores.get(fleet)
        if known_usd is not None:
            return known_usd
        miss_usd = self.miss.usd if any(map(mul, fleet, self._capacities)) else self.miss.usd_without_primary
        usd = self.usd_per_s(fleet) + miss_usd * self.missed_per_s(fleet)
        for number, (current, start_usd_per_s, stop_usd_per_s) in zip(fleet, self._changes, strict=True):
            if number > current:
                usd += (number - current) * start_usd_per_s
            elif number < current:
                usd += (current - number) * stop_usd_per_s
        self._scores[fleet] = usd
        return usd

    def missed_per_s(self, fleet: Sequence[int]) -> float:
        """Requests per second expected to miss."""
        fleet = tuple(fleet)
        known_per_s = self._missed.get(fleet)
        if known_per_s is None:
            known_per_s = self._missed[fleet] = self._missed_per_s(fleet)
        return known_per_s

    def _missed_per_s(self, fleet: tuple[int, ...]) -> float:
        capacity_per_s = float(sum(map(mul, fleet, self._capacities)))
        substitutes = [(fleet[index], substitute) for index, substitute in self._fallback if fleet[index]]
        if capacity_per_s <= 0.0:
            if not substitutes:
                return self.rate_per_s
            return sum([probability * _left_over(load_per_s, substitutes) for load_per_s, probability in self._loads()])
        lost_per_s = self._lost_per_s(capacity_per_s)
        if not substitutes or lost_per_s <= 0.0:
            return lost_per_s
        clump_per_s = max(lost_per_s, _CLUMP * capacity_per_s)
        return lost_per_s * _left_over(clump_per_s, substitutes) / clump_per_s

    def _loads(self) -> list[tuple[float, float]]:
        """(requests per second, probability) of a minute; what is above the ceiling counts as the ceiling."""
        if not self._minutes:
            rest = 1.0
            for ratio, probability in self._seen.ratios:
                load_per_s = ratio * self.rate_per_s
                if load_per_s >= self._ceiling_per_s:
                    break
                self._minutes.append((load_per_s, probability))
                rest -= probability
            self._minutes.append((self._ceiling_per_s, max(0.0, rest)))  # less than 0 by rounding
        return self._minutes

    def _lost_per_s(self, capacity_per_s: float) -> float:
        """What the primary pools lose, from the loss curve; what a fleet for the ceiling would lose too is not
        theirs."""
        share = self._foresight.share_lost(capacity_per_s, self.rate_per_s)
        if share <= self._inevitable:
            return 0.0
        return _LONGEST_FIRST * self.rate_per_s * (share - self._inevitable) / (1.0 - self._inevitable)


_Substitute = tuple[float, float, float, float]
"""What `_left_over` needs to know of a replica of a fallback pool, see `_substitute`."""


def _substitute(offer: PoolOffer) -> _Substitute:
    """(prefill_s, most requests per second that it takes, share, spoilt_share)"""
    most_per_s = min(_FULL / offer.prefill_s, offer.capacity_per_s)
    return offer.prefill_s, most_per_s, offer.share, offer.spoilt_share


def _left_over(lost_per_s: float, substitutes: Sequence[tuple[int, _Substitute]]) -> float:
    """Of the requests that the primary pools lose, how many the fallback pools do not serve inside the SLO either.

    A prompt takes seconds there, so one that comes while another answer is being written may spoil that answer, and the
    more so the more of them there are. Where prompts are short, its answers bound it instead: its capacity.
    """
    for number, (prefill_s, most_per_s, share, spoilt_share) in substitutes:
        each_per_s = lost_per_s * share / number
        load = prefill_s * (each_per_s if each_per_s < most_per_s else most_per_s)
        spoilt = load * (spoilt_share + load)  # less than 1, as load is at most `_FULL`
        lost_per_s -= load * number / prefill_s * (1.0 - spoilt)
    return lost_per_s


_NUM_SEEDS = 2
"""Of the fleets of one pool alone, as many of the cheapest are searched from."""


def cheapest_fleet(market: Market, start: Sequence[int]) -> tuple[int, ...]:
    """The fleet with the lowest score that steps of one replica, or giving up a whole pool, lead to from ``start``.

    The score is convex but for the last replica of a pool, hence the second kind of step.
    """
    offers = market.offers
    fleet = tuple(
        [min(offer.max_replicas, max(offer.min_replicas, number)) for number, offer in zip(start, offers, strict=True)]
    )
    least = [offer.min_replicas for offer in offers]
    alone = []
    for index, offer in enumerate(offers):
        # Every other pool at its least, this one as big as the demand asks.
        if offer.share > 0.0 and offer.max_replicas > 0:
            wanted = -(-market.rate_per_s // (0.9 * offer.capacity_per_s))
            number = int(min(offer.max_replicas, max(1.0, wanted, offer.min_replicas)))
            alone.append((*least[:index], number, *least[index + 1 :]))
    alone.sort(key=market.score)
    best, best_usd = fleet, float("inf")
    for begin in dict.fromkeys((fleet, *alone[:_NUM_SEEDS])):
        found, found_usd = _descend(market, begin)
        if found_usd < best_usd:
            best, best_usd = found, found_usd
    return best


def _descend(market: Market, start: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
    """Change one pool after the other for as long as that helps, until none does."""
    offers, score = market.offers, market.score
    fleet, usd = start, score(start)
    index = num_settled = 0
    while num_settled < len(offers):
        num_settled += 1
        offer, before = offers[index], fleet[index]
        for step in (1, -1):
            number = fleet[index] + step
            while offer.min_replicas <= number <= offer.max_replicas:
                candidate = (*fleet[:index], number, *fleet[index + 1 :])
                if step > 0 and market.usd_per_s(candidate) >= usd:
                    break  # its price alone is too much
                candidate_usd = score(candidate)
                if candidate_usd >= usd:
                    break
                fleet, usd = candidate, candidate_usd
                number += step
            if fleet[index] != before:
                num_settled = 1  # the others must be looked at again, with this one as it is now
                break
        index = (index + 1) % len(offers)
    return fleet, usd
