"""The autoscaler's board, as one gateway reads it."""

import asyncio
import math
import time
from collections.abc import Callable

import orjson
import pytest
from prometheus_client import REGISTRY

from serving.gateway import fleet
from serving.gateway.fleet import FleetBoard
from serving.protocol.board import STALE_S, Board, ModelBoard
from tests.protocol.test_board import IDLE, STARTING
from tests.support.stack import until

GUARD_S = 5.0
"""No test takes longer."""


def board(age_s: float = 0.0) -> bytes:
    pools = {"gpu": STARTING, "cpu": IDLE}
    return Board(time.time() - age_s, {"fleet-demo": ModelBoard(pools, "slo", 1.5, 0.25)}).encode()


def raises(error: Exception) -> Callable[[], bytes]:
    def read() -> bytes:
        raise error

    return read


async def looked(read: Callable[[], bytes | None]) -> FleetBoard:
    known = FleetBoard(read)
    await known.look()
    return known


async def test_it_knows_when_a_replica_is_expected() -> None:
    known = await looked(board)
    assert known.coming_s("fleet-demo") == pytest.approx(40.0, abs=GUARD_S)
    assert math.isnan(known.coming_s("other") or 0.0)


async def test_it_knows_what_a_token_costs() -> None:
    known = await looked(board)
    for pool, row in (("gpu", STARTING), ("cpu", IDLE)):
        usd = row.usage_usd_per_million_tokens
        assert known.usd_per_token("fleet-demo", pool) == (None if usd is None else usd / 1e6)
    assert known.usd_per_token("fleet-demo", "other") is known.usd_per_token("other", "gpu") is None
    assert FleetBoard(board).usd_per_token("fleet-demo", "gpu") is None


async def test_before_anything_was_read_nobody_knows() -> None:
    for known in (FleetBoard(board), await looked(lambda: None)):
        assert math.isnan(known.coming_s("fleet-demo") or 0.0)
        assert known.as_status() is None


async def test_a_board_that_nobody_writes_any_more_is_not_believed() -> None:
    known = await looked(lambda: board(age_s=STALE_S + 1.0))
    assert math.isnan(known.coming_s("fleet-demo") or 0.0)


@pytest.mark.parametrize("error", [OSError("no GCS"), RuntimeError("no Ray"), TimeoutError()])
async def test_what_was_read_last_stays_while_it_cannot_be_read(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reads = iter([board, raises(error), lambda: b"nonsense", lambda: None])
    known = FleetBoard(lambda: next(reads)())  # noqa: PLW0108  (another one each time)
    for _ in range(4):
        await known.look()
    assert known.coming_s("fleet-demo") == pytest.approx(40.0, abs=GUARD_S)
    assert sum("could not be read" in record.message for record in caplog.records) == 2


async def test_it_goes_on_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "READ_INTERVAL_S", 0.0)
    num_reads = 0

    def read() -> bytes:
        nonlocal num_reads
        num_reads += 1
        if num_reads % 2:
            raise OSError("now and then")
        return board()

    following = asyncio.create_task(FleetBoard(read).follow())
    await until(lambda: num_reads > 5)
    following.cancel()


async def test_status_and_metrics_say_what_it_says() -> None:
    known = await looked(board)
    status = orjson.loads(orjson.dumps(known.as_status()))
    assert status["models"]["fleet-demo"]["pools"]["gpu"]["num_starting"] == 1
    assert 0.0 <= status["age_s"] < GUARD_S

    def sample(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"model": "fleet-demo"} | labels)

    assert sample("ballast_forecast_requests_per_second") == 1.5
    assert sample("ballast_error_budget_spent") == 0.25
    assert sample("ballast_target_replicas", pool="gpu") == 1
    assert sample("ballast_starting_replicas", pool="gpu") == 1
    assert sample("ballast_usd_per_million_tokens", pool="gpu", basis="allocation") == 2.5
    assert math.isnan(sample("ballast_usd_per_million_tokens", pool="gpu", basis="usage") or 0.0)
