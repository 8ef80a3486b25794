"""The end of every request."""

from typing import Any

from serving.gateway.exchange import Exchange
from serving.gateway.metering import record
from serving.protocol.openai import Dialect


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
