"""What the autoscaler tells the gateways, through Ray's key-value store: the fleet it wants and what is coming.

Written every few seconds, read about once a second. A gateway that finds it old knows that nobody scales now.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import orjson

KEY = b"ballast/fleet"
#: Older than this, what the board says of the future counts as unknown.
STALE_S = 15.0
#: How long it takes until a request that waits is seen, decided about, and a replica begins to start.
DECIDED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class PoolBoard:
    """One pool. ``coming_s``: when the next starting replica is expected to be ready; None: none starts.
    ``is_available``: it has a device, as far as is known. ``can_start``: and somebody would start a replica there.
    ``is_fallback``: it only stands in for others. Costs are in US dollars; per million tokens they are None while there
    were no tokens."""

    target: int
    num_ready: int
    num_starting: int
    coming_s: float | None
    cold_start_s: float
    is_available: bool
    can_start: bool
    is_fallback: bool
    binding: str
    usd_per_hour: float
    usage_usd_per_million_tokens: float | None
    allocation_usd_per_million_tokens: float | None


@dataclass(frozen=True, slots=True)
class ModelBoard:
    """One model: its pools by name, what binds the plan, requests per second expected, and the share of the error
    budget that is spent."""

    pools: Mapping[str, PoolBoard]
    binding: str
    forecast_per_s: float
    budget_spent: float


@dataclass(frozen=True, slots=True)
class Board:
    """All models, at one time (Unix seconds)."""

    at_s: float
    models: Mapping[str, ModelBoard]

    def encode(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ValueError for what is no board."""
        try:
            document = orjson.loads(data)
            models = {name: _model(model) for name, model in document["models"].items()}
            return cls(float(document["at_s"]), models)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a board: {error!r}") from error

    def coming_s(self, model: str, now_s: float, allows_fallback: bool = True) -> float | None:
        """Seconds until a replica of ``model`` could be ready, of a primary pool or, where one ``allows_fallback``, of
        any; None: none can start; NaN: nobody knows.

        Asked by a gateway that sees no replica. Where the autoscaler sees one, nobody knows, whatever else is starting:
        it has just come up, is silent for a moment, or has died and will be started again.
        """
        found = self.models.get(model)
        if found is None or now_s - self.at_s > STALE_S:
            return float("nan")
        pools = [pool for pool in found.pools.values() if allows_fallback or not pool.is_fallback]
        if any(pool.num_ready and not pool.is_fallback for pool in pools):
            return float("nan")
        passed_s = max(0.0, now_s - self.at_s)
        coming = [
            max(0.0, pool.coming_s - passed_s) if pool.coming_s is not None else DECIDED_WITHIN_S + pool.cold_start_s
            for pool in pools
            if pool.can_start
        ]
        return min(coming, default=None)


def _model(document: Mapping[str, Any]) -> ModelBoard:
    pools = {name: PoolBoard(**entry) for name, entry in document["pools"].items()}
    return ModelBoard(**{**document, "pools": pools})
