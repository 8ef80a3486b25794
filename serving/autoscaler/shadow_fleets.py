"""What a forecast is worth, learned and not assumed.

For each ratio of a grid a *shadow fleet*, whose capacity is always that ratio times what was foretold one lead time
before, is fed the real arrivals; what does not fit in its bounded queue is lost. The losses of all of them, old ones
fading, are the loss curve that a plan is scored with (`score.py`): forecast errors, bursts and chance together, as this
workload has shown them.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

RATIOS = (
    0.25, 0.5, 0.65, 0.75, 0.82, 0.88, 0.94, 1.0, 1.06, 1.12, 1.2, 1.3, 1.42, 1.6, 1.85, 2.2, 2.8, 4.0, 6.0, 10.0, 16.0,
    32.0,
)  # fmt: skip
"""Rate found over rate foretold: the histogram's bins. Capacity over rate foretold: the shadow fleets."""

_PRIOR_WEIGHT = 10.0
_PRIOR_SIGMA = 0.1
_PRIOR_TAIL = 0.01
"""Share of the prior beyond twice the forecast."""
_PRIOR_REQUESTS = 500.0
"""As many requests' worth of losses does the prior stand for."""
_FADED_REQUESTS = 1e-6
"""Fewer than these do not fade further: months without a request must not make a share of nothing."""


def prior_spread() -> tuple[float, ...]:
    """How often each ratio of the rate found to the rate foretold is believed to come, before any was seen."""
    weights = [math.exp(-0.5 * (math.log(ratio) / _PRIOR_SIGMA) ** 2) for ratio in RATIOS]
    tail = [1.0 / ratio if ratio > 2.0 else 0.0 for ratio in RATIOS]
    return tuple(
        _PRIOR_WEIGHT * ((1.0 - _PRIOR_TAIL) * weight / sum(weights) + _PRIOR_TAIL * more / sum(tail))
        for weight, more in zip(weights, tail, strict=True)
    )


def _prior_lost() -> tuple[float, ...]:
    """What the shadow fleets would have lost of `_PRIOR_REQUESTS` requests, if ratios came as in the prior."""
    prior = prior_spread()
    scale = _PRIOR_REQUESTS / sum(prior)
    return tuple(
        scale * sum(weight * max(0.0, ratio - capacity) for ratio, weight in zip(RATIOS, prior, strict=True))
        for capacity in RATIOS
    )


@dataclass(frozen=True, slots=True)
class Shadows:
    """Fleets whose capacity is always one of `RATIOS` times the forecast of one lead time before. Sums are fading."""

    foretold_per_s: float = 0.0
    """That forecast; 0 until there is one."""
    backlogs_s: tuple[float, ...] = (0.0,) * len(RATIOS)
    """Seconds of work that wait at each fleet."""
    lost: tuple[float, ...] = _prior_lost()
    """Mean requests lost by each fleet."""
    num_arrived: float = _PRIOR_REQUESTS
    """Mean requests that each was fed."""
    capacity: float = _PRIOR_REQUESTS
    """Mean requests that the fleet of ratio 1 could have served: the forecast, summed over time."""
    climbed_per_s: float = 0.0
    """Sum of all the forecast's rises: capacity that was started."""


class Foresight(NamedTuple):
    """A way to foretell: what it says now, and what it was worth."""

    forecast_per_s: float
    shadows: Shadows

    def share_lost(self, capacity_per_s: float, rate_per_s: float) -> float:
        """The loss curve: share of the demand that a fleet is expected to lose. 1 at no capacity, straight between the
        shadow fleets, 0 beyond the biggest."""
        ratio = capacity_per_s / rate_per_s
        above = bisect_right(RATIOS, ratio)
        if above == len(RATIOS):
            return 0.0
        lost, number = self.shadows.lost, self.shadows.num_arrived
        low, at_low = (RATIOS[above - 1], lost[above - 1]) if above else (0.0, number)
        share = (at_low + (lost[above] - at_low) * (ratio - low) / (RATIOS[above] - low)) / number
        return share if share < 1.0 else 1.0

    def usd_per_request(self, usd_per_capacity: float, miss_usd: float, lead_s: float) -> float:
        """What serving by it costs at the best ratio, misses and starts included."""
        shadows = self.shadows
        held_usd = usd_per_capacity * (shadows.capacity + lead_s * shadows.climbed_per_s)
        usd = [held_usd * ratio + miss_usd * lost for ratio, lost in zip(RATIOS, shadows.lost, strict=True)]
        return min(usd) / shadows.num_arrived


def fed(shadows: Shadows, arrived: float, dt_s: float, slack_s: float) -> Shadows:
    """After ``dt_s`` seconds in which ``arrived`` mean requests came."""
    foretold_per_s = shadows.foretold_per_s
    if foretold_per_s <= 0.0:
        return shadows
    work_s = arrived / foretold_per_s
    backlogs_s, lost = list(shadows.backlogs_s), list(shadows.lost)
    for index, (ratio, before_s) in enumerate(zip(RATIOS, shadows.backlogs_s, strict=True)):
        backlog_s = before_s + work_s / ratio - dt_s
        if backlog_s > slack_s:
            too_much_s = backlog_s - slack_s
            lost[index] += too_much_s * ratio * foretold_per_s
            backlog_s -= too_much_s
        elif backlog_s <= 0.0:
            if before_s <= 0.0:
                break  # a bigger fleet has no more waiting than a smaller one: nothing changes for the rest
            backlog_s = 0.0
        backlogs_s[index] = backlog_s
    return Shadows(
        foretold_per_s=foretold_per_s,
        backlogs_s=tuple(backlogs_s),
        lost=tuple(lost),
        num_arrived=shadows.num_arrived + arrived,
        capacity=shadows.capacity + foretold_per_s * dt_s,
        climbed_per_s=shadows.climbed_per_s,
    )


def retold(shadows: Shadows, foretold_per_s: float, fade: float) -> Shadows:
    """With another forecast, and all sums faded."""
    before_per_s = shadows.foretold_per_s or foretold_per_s
    fade = fade if shadows.num_arrived > _FADED_REQUESTS else 1.0
    return Shadows(
        foretold_per_s=foretold_per_s,
        backlogs_s=shadows.backlogs_s,
        lost=tuple([number * fade for number in shadows.lost]),
        num_arrived=shadows.num_arrived * fade,
        capacity=shadows.capacity * fade,
        climbed_per_s=shadows.climbed_per_s * fade + max(0.0, foretold_per_s - before_per_s),
    )
