"""What a million tokens have cost in a run, by pool: all of them, and those that met the SLO.

A pool is paid for by the hour whether or not it works. So the price of a token at the SLO is the pool's cost over the
run by the tokens of requests that met it: what misses is paid for and earns nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.runs.rows import Rows
from benchmarks.runs.slo import Slo
from serving.config import Config

_S_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Prices:
    """By pool of one model: what one replica costs an hour, and how many there are at least."""

    usd_per_hour: Mapping[str, float]
    min_replicas: Mapping[str, int]
    slo: Slo


def prices_of(config: Config, model: str) -> Prices | None:
    """None: the config has no model of that name."""
    for entry in config.models:
        if model in entry.names:
            return Prices(
                {pool.name: pool.usd_per_hour for pool in entry.pools},
                {pool.name: pool.replicas.min for pool in entry.pools},
                Slo(ttft_s=entry.slo.ttft_s, tpot_s=entry.slo.tpot_s, objective=entry.slo.objective),
            )
    return None


def cost_of(rows: Rows, slo: Slo, prices: Prices, scraped_usd_per_hour: Mapping[str, float]) -> list[dict[str, Any]]:
    """One JSON object per pool. ``scraped_usd_per_hour``: what the server said the pools cost while it ran; without it
    the config's least number of replicas is taken to have run, which the object says. Of a pool that may have none,
    nothing is known then (null)."""
    begin_s, end_s = rows.span_s
    met = slo.is_met(rows)
    tokens = rows.prompt_tokens + rows.output_tokens
    # A server that names no pool has one.
    of_pool = rows.pool if len(prices.usd_per_hour) > 1 else np.full(len(rows), next(iter(prices.usd_per_hour)))
    found = []
    for pool, price in prices.usd_per_hour.items():
        usd_per_hour: float | None
        if pool in scraped_usd_per_hour:
            usd_per_hour, basis = scraped_usd_per_hour[pool], "as the server said"
        elif prices.min_replicas[pool]:
            usd_per_hour, basis = price * prices.min_replicas[pool], "replicas.min of the config"
        else:
            usd_per_hour, basis = None, "replicas.min of the config is 0, and the server did not say"
        usd = None if usd_per_hour is None else usd_per_hour * (end_s - begin_s) / _S_PER_HOUR
        here = (of_pool == pool) & rows.is_ok
        all_tokens, good_tokens = int(tokens[here].sum()), int(tokens[here & met].sum())
        found.append(
            {
                "pool": pool,
                "usd_per_hour": _rounded(usd_per_hour, 6),
                "basis": basis,
                "usd": _rounded(usd, 9),
                "num_tokens": all_tokens,
                "num_tokens_in_slo": good_tokens,
                "usd_per_million_tokens": _per_million(usd, all_tokens),
                "usd_per_million_tokens_at_slo": _per_million(usd, good_tokens),
            }
        )
    return found


def _rounded(usd: float | None, digits: int) -> float | None:
    return None if usd is None else round(usd, digits)


def _per_million(usd: float | None, num_tokens: int) -> float | None:
    return round(1e6 * usd / num_tokens, 4) if usd is not None and num_tokens else None
