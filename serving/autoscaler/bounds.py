"""What bounds a fleet whatever it is worth: money, the pools' own bounds, and the capacity that there is."""

import math
from collections.abc import Sequence

from serving.autoscaler.clean import clean_number
from serving.autoscaler.demand import Outlook
from serving.autoscaler.pool_view import PoolView
from serving.autoscaler.score import Market, PoolOffer
from serving.autoscaler.types import Binding, Spec

_SPENDING = (Binding.MAX_USD_PER_HOUR, Binding.TARGET_USD_PER_MILLION_TOKENS)


def usd_per_hour_bound(market: Market, seen: Outlook, spec: Spec) -> tuple[float, Binding]:
    """The most that may be spent per hour, and which setting says so. A price per token is one at the load that is
    planned for: at the mean alone, a burst would wait for half an hour of itself.
    """
    bound, binding = math.inf, Binding.MAX_USD_PER_HOUR
    if spec.max_usd_per_hour is not None:
        bound = clean_number(spec.max_usd_per_hour, default=math.inf)
    if spec.target_usd_per_million_tokens is not None:
        target = clean_number(spec.target_usd_per_million_tokens, default=math.inf)
        load_per_s = max(seen.mix_per_s, seen.present_per_s, market.rate_per_s)
        tokens_per_s = load_per_s * (seen.prompt_tokens + seen.output_tokens)
        by_target = max(_least_usd_per_hour(market.offers), target * tokens_per_s * 3600.0 / 1e6)
        if by_target < bound:
            bound, binding = by_target, Binding.TARGET_USD_PER_MILLION_TOKENS
    return bound, binding


def _least_usd_per_hour(offers: Sequence[PoolOffer]) -> float:
    """One replica cannot be halved: the cheapest that serves everything is always allowed, beside all minimums."""
    kept = sum(offer.min_replicas * offer.usd_per_s for offer in offers)
    able = [offer for offer in offers if offer.max_replicas and not offer.is_fallback]
    able = able or [offer for offer in offers if offer.max_replicas]
    return 3600.0 * (kept + min((0.0 if offer.min_replicas else offer.usd_per_s for offer in able), default=0.0))


def within_spend(
    market: Market, targets: Sequence[int], bound: tuple[float, Binding]
) -> tuple[list[int], Binding | None]:
    """Give up what is worth least until the bound holds, and buy what still fits. A pool's own minimum stays."""
    usd_per_hour, binding = bound
    fleet = list(targets)
    capped_by = None
    while usd_per_hour < math.inf and market.usd_per_s(fleet) * 3600.0 > usd_per_hour * (1.0 + 1e-9):
        options = [
            index
            for index, offer in enumerate(market.offers)
            if fleet[index] > offer.min_replicas and offer.usd_per_s > 0.0
        ]
        if not options:
            break
        capped_by = binding
        worst = min(options, key=lambda index: market.score([*fleet[:index], fleet[index] - 1, *fleet[index + 1 :]]))
        fleet[worst] -= 1
    for index, offer in enumerate(market.offers if capped_by else ()):
        more = [*fleet[:index], fleet[index] + 1, *fleet[index + 1 :]]
        while (
            more[index] <= offer.max_replicas
            and market.usd_per_s(more) * 3600.0 <= usd_per_hour
            and market.score(more) < market.score(fleet)
        ):
            fleet = more
            more = [*fleet[:index], fleet[index] + 1, *fleet[index + 1 :]]
    return fleet, capped_by


def name_bounds(
    market: Market,
    pools: Sequence[PoolView],
    cheapest: Sequence[int],
    wanted: Sequence[int],
    targets: Sequence[int],
    bindings: list[Binding],
) -> None:
    """Put the name of the bound that a pool is at into ``bindings``."""
    for index, pool in enumerate(pools):
        offer = market.offers[index]
        if bindings[index] in _SPENDING:
            continue
        if targets[index] >= offer.max_replicas and _wants_more(market, wanted, index):
            is_bound = offer.max_replicas == pool.spec.max_replicas
            bindings[index] = Binding.REPLICAS_MAX if is_bound else Binding.CAPACITY
        elif bindings[index] is Binding.SLO and 0 < targets[index] == offer.min_replicas:
            bindings[index] = Binding.REPLICAS_MIN
        elif bindings[index] is Binding.SLO and wanted[index] > cheapest[index]:
            bindings[index] = Binding.PATIENCE


def _wants_more(market: Market, fleet: Sequence[int], index: int) -> bool:
    if fleet[index] < market.offers[index].max_replicas:
        return False
    return market.score([*fleet[:index], fleet[index] + 1, *fleet[index + 1 :]]) < market.score(fleet)
