"""What tokens cost, live: by use, and by what the fleet really costs, idle replicas included."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.autoscaler.types import Fleet, Prices

WINDOW_S = 3600.0
"""The figures are means over about this long."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one pool. US dollars per million tokens, prompt and output together; None while there were none."""

    usage_usd_per_million_tokens: float | None
    """While its engines work: what a token costs at the throughput that was measured."""
    allocation_usd_per_million_tokens: float | None
    """Of all the time its replicas were paid for."""
    usd_per_hour: float


@dataclass(slots=True)
class Spending:
    """One model's account, fading."""

    _last_s: float | None = None
    _tokens: dict[str, float] = field(default_factory=dict)
    _busy_usd: dict[str, float] = field(default_factory=dict)
    _paid_usd: dict[str, float] = field(default_factory=dict)
    _now_usd_per_hour: dict[str, float] = field(default_factory=dict)

    def add(self, fleet: Fleet, prices: Prices, now_s: float) -> None:
        """The time since the last call was paid for at this fleet."""
        passed_s = now_s - self._last_s if self._last_s is not None else 0.0
        self._last_s = now_s
        fade = math.exp(-passed_s / WINDOW_S)
        for pool, state in fleet.items():
            usd_per_s = prices.get(pool, 0.0) / 3600.0
            number = state.num_ready + len(state.starting_age_s)
            work = state.work
            self._now_usd_per_hour[pool] = number * usd_per_s * 3600.0
            self._tokens[pool] = self._tokens.get(pool, 0.0) * fade + work.prefill_tokens + work.decode_tokens
            self._busy_usd[pool] = self._busy_usd.get(pool, 0.0) * fade + work.busy_s * usd_per_s
            self._paid_usd[pool] = self._paid_usd.get(pool, 0.0) * fade + number * passed_s * usd_per_s

    def costs(self) -> Mapping[str, Cost]:
        """By pool."""
        return {
            pool: Cost(
                _per_million(self._busy_usd[pool], tokens),
                _per_million(self._paid_usd[pool], tokens),
                self._now_usd_per_hour[pool],
            )
            for pool, tokens in self._tokens.items()
        }


def _per_million(usd: float, tokens: float) -> float | None:
    return usd / tokens * 1e6 if tokens >= 1.0 else None
