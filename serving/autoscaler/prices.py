"""The two prices of a plan: what a replica of each pool costs and does, and what a missed request costs."""

import math
from collections.abc import Sequence

from serving.autoscaler.demand import Outlook
from serving.autoscaler.pool_view import PoolView
from serving.autoscaler.prompt_lengths import mean_up_to, share_up_to
from serving.autoscaler.score import MissPrice, PoolOffer
from serving.autoscaler.service_model import capacity_per_s, longest_prompt_tokens, prefill_s, spoilt_share
from serving.autoscaler.shadow_fleets import Foresight
from serving.autoscaler.types import Spec
from serving.router.choice import FALLBACK_TTFT_SHARE

MIN_SLACK_S = 0.1
"""A request may always wait this long, however long its prompt takes."""
_MIN_RATE_PER_S = 1e-4
_STEADIER = 0.85
"""The steady view must promise at least this much less cost."""
_STEADY_AFTER_S = 1_800.0
"""Half of the hour that the steady view is the mean of."""


def budget_spent(num_requests: float, num_missed: float, day_per_s: float, spec: Spec) -> float:
    """Misses over allowed misses in the budget's window.

    A fresh memory starts as if some time had passed with the budget spent exactly: it neither saves nor spends at
    first.
    """
    tuning = spec.tuning
    allowed = max(1e-6, (1.0 - spec.objective) * tuning.budget_share)
    prior = max(tuning.min_prior_requests, tuning.budget_prior_s * day_per_s)
    return (num_missed + prior * allowed) / (num_requests + prior) / allowed


def miss_price(offers: Sequence[PoolOffer], seen: Outlook, spent: float, spec: Spec) -> MissPrice:
    """Shadow price of a miss.

    With the budget spent exactly, one replica is worth its price if it saves the misses allowed at a load halfway, on
    a logarithmic scale, between the mean load and what one replica carries. That follows the multiplier of the
    offline optimum (`benchmarks/simulator/oracle.py`), which hardly depends on the load: a small fleet can afford
    more misses per replica than its mean load allows, a big one fewer.
    """
    tuning = spec.tuning
    primary = [offer for offer in offers if not offer.is_fallback] or offers
    if not primary:
        return MissPrice(0.0, 0.0)
    cheapest = min(primary, key=lambda offer: offer.usd_per_s / offer.capacity_per_s)
    halfway_per_s = math.sqrt(max(_MIN_RATE_PER_S, seen.day_per_s) * cheapest.capacity_per_s)
    allowed_per_s = max(1e-6, 1.0 - spec.objective) * tuning.budget_share * halfway_per_s
    gain = tuning.price_gain if spent > 1.0 else tuning.saving_gain
    pressure = min(tuning.max_pressure, max(-tuning.max_saving, gain * (spent - 1.0)))
    base_usd = max(cheapest.usd_per_s, 1e-9) * tuning.price_scale / allowed_per_s
    alone = min(tuning.max_pressure_without_primary, max(pressure, tuning.gain_without_primary * (spent - 1.0)))
    return MissPrice(base_usd * math.exp(pressure), base_usd * math.exp(alone))


def chosen_foresight(
    offers: Sequence[PoolOffer], seen: Outlook, miss_usd: float, lead_s: float, seen_s: float
) -> Foresight:
    """The way to foretell by which the cheapest primary pool would have served at the least cost. What the mean of an
    hour is worth is not known before a good part of one was seen: until then it is the mean of all there was, and
    slower than any burst.
    """
    if seen_s < _STEADY_AFTER_S:
        return seen.nimble
    usd_per_capacity = min(
        (offer.usd_per_s / offer.capacity_per_s for offer in offers if not offer.is_fallback), default=0.0
    )
    nimble_usd = seen.nimble.usd_per_request(usd_per_capacity, miss_usd, lead_s)
    steady_usd = seen.steady.usd_per_request(usd_per_capacity, miss_usd, lead_s)
    return seen.steady if steady_usd < _STEADIER * nimble_usd else seen.nimble


def offer_of(pool: PoolView, seen: Outlook, spec: Spec) -> PoolOffer:
    """What one replica of the pool does for the present mix."""
    model, fallback = pool.spec.model, pool.spec.fallback
    speed = pool.speed.value if pool.speed.weight > 0.0 else 1.0
    prompt_tokens, share = seen.prompt_tokens, 1.0
    if fallback is not None:
        longest = min(
            fallback.max_prompt_tokens, longest_prompt_tokens(model, FALLBACK_TTFT_SHARE * spec.ttft_slo_s * speed)
        )
        prompt_tokens, share = mean_up_to(seen.buckets, longest), share_up_to(seen.buckets, longest)
    alone_s = prefill_s(model, prompt_tokens) / speed
    start_usd = pool.cold_start_s * pool.usd_per_hour / 3600.0
    return PoolOffer(
        usd_per_s=pool.usd_per_hour / 3600.0,
        min_replicas=min(pool.spec.min_replicas, pool.max_replicas),
        max_replicas=pool.max_replicas,
        capacity_per_s=speed * capacity_per_s(model, prompt_tokens, seen.output_tokens, spec.tpot_slo_s * speed),
        slack_s=max(MIN_SLACK_S, spec.ttft_slo_s - alone_s),
        share=share,
        prefill_s=alone_s,
        current=pool.current,
        start_usd_per_s=start_usd / spec.tuning.stay_s,
        stop_usd_per_s=start_usd / spec.tuning.gone_s,
        spoilt_share=spoilt_share(model, alone_s, seen.output_tokens, spec.tpot_slo_s * speed),
        is_fallback=fallback is not None,
    )
