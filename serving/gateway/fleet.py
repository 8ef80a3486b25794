"""What the autoscaler says of the fleet, as one gateway last read it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict

from serving.protocol.board import KEY, Board
from serving.telemetry import metrics

logger = logging.getLogger("ballast.gateway")

READ_INTERVAL_S = 1.0


def read_kv() -> bytes | None:
    """The board as Ray's key-value store has it; None: nobody has written one. Raises OSError: Ray does not answer."""
    from ray.exceptions import RayError
    from ray.experimental.internal_kv import _internal_kv_get

    try:
        data: bytes | None = _internal_kv_get(KEY)
    except RayError as error:
        raise OSError(f"Ray's key-value store does not answer: {error}") from error
    return data


class FleetBoard:
    """Reads the board about once a second. While it cannot be read, what was last read grows old and says so.

    ``read`` may block, and raise OSError or RuntimeError.
    """

    def __init__(self, read: Callable[[], bytes | None] = read_kv) -> None:
        self._read = read
        self._board: Board | None = None

    def coming_s(self, model: str, allows_fallback: bool = True) -> float | None:
        """Seconds until a replica of ``model`` could be ready, of a primary pool or, where one ``allows_fallback``, of
        any; None: none can start; NaN: nobody knows."""
        return self._board.coming_s(model, time.time(), allows_fallback) if self._board is not None else math.nan

    def usd_per_token(self, model: str, pool: str) -> float | None:
        """What a token of this pool costs by use; None: not known yet."""
        found = self._board.models.get(model) if self._board is not None else None
        row = found.pools.get(pool) if found is not None else None
        if row is None or row.usage_usd_per_million_tokens is None:
            return None
        return row.usage_usd_per_million_tokens / 1e6

    def as_status(self) -> dict[str, object] | None:
        """For /admin/status."""
        if self._board is None:
            return None
        return {"age_s": round(time.time() - self._board.at_s, 3), **asdict(self._board)}

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(READ_INTERVAL_S)

    async def look(self) -> None:
        """Read it once."""
        try:
            data = await asyncio.to_thread(self._read)
            if data is not None:
                self._board = Board.decode(data)
                self._export(self._board)
        except (ValueError, RuntimeError, OSError) as error:
            logger.warning("the autoscaler's board could not be read: %s", error)

    def _export(self, board: Board) -> None:
        for name, model in board.models.items():
            metrics.BUDGET_SPENT.labels(name).set(model.budget_spent)
            metrics.FORECAST.labels(name).set(model.forecast_per_s)
            for pool, entry in model.pools.items():
                metrics.TARGET_REPLICAS.labels(name, pool).set(entry.target)
                metrics.STARTING_REPLICAS.labels(name, pool).set(entry.num_starting)
                metrics.AVAILABLE.labels(name, pool).set(entry.is_available)
                metrics.USD_PER_HOUR.labels(name, pool).set(entry.usd_per_hour)
                for basis, usd in (
                    ("usage", entry.usage_usd_per_million_tokens),
                    ("allocation", entry.allocation_usd_per_million_tokens),
                ):
                    metrics.USD_PER_MILLION_TOKENS.labels(name, pool, basis).set(math.nan if usd is None else usd)
