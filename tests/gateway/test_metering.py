"""The end of every request."""

from typing import Any

import pytest

from serving.gateway.exchange import Exchange
from serving.gateway.metering import record
from serving.protocol.openai import Dialect
from tests.support.metrics import metric


class Log:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, entry: dict[str, Any]) -> None:
        self.lines.append(entry)


def exchange(pool: str = "gpu") -> Exchange:
    found = Exchange("req-1", "POST", "/v1/chat/completions", Dialect.OPENAI, arrived_s=0.0, model="metered", pool=pool)
    found.usage = {"prompt_tokens": 100, "cached_tokens": 0, "output_tokens": 50, "finish_reason": "stop"}
    return found


def usd(found: Exchange, price: float | None) -> float | None:
    log = Log()
    record(found, 1.0, log, lambda _model, _pool: price)  # type: ignore[arg-type]
    cost: float | None = log.lines[0]["usd"]
    return cost


def test_a_request_says_what_its_tokens_have_cost() -> None:
    assert usd(exchange(), 2e-6) == 0.0003


def test_what_is_not_known_is_null() -> None:
    assert usd(exchange(), None) is None
    assert usd(exchange(pool=""), 2e-6) is None


def test_cached_tokens_are_not_paid_for_again() -> None:
    found = exchange()
    found.usage["cached_tokens"] = 90
    assert usd(found, 2e-6) == 0.00012


@pytest.mark.parametrize("is_stream", [True, False])
def test_only_a_stream_has_a_first_token_before_its_last(is_stream: bool) -> None:
    found = exchange(pool=f"streams-{is_stream}")
    found.is_stream, found.first_byte_s = is_stream, 0.5
    usd(found, None)
    of_pool = {"model": "metered", "pool": found.pool}
    assert bool(metric("ballast_time_to_first_token_seconds_count", **of_pool)) == is_stream
    assert metric("ballast_request_duration_seconds_count", **of_pool) == 1


def test_a_fallback_is_counted_once_where_the_request_ended() -> None:
    found = exchange(pool="falls-back")
    found.fallback = "no-primary-replica"
    usd(found, None)
    of_pool = {"model": "metered", "pool": "falls-back", "reason": "no-primary-replica"}
    assert metric("ballast_fallbacks_total", **of_pool) == 1
