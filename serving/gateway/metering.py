"""The end of every request: its metrics and its one log line."""

from collections.abc import Callable

from serving.gateway.exchange import Exchange
from serving.telemetry import metrics
from serving.telemetry.logs import RequestLog

Price = Callable[[str, str], float | None]
"""US dollars per token of a (model, pool), by use; None: not known yet."""


def no_price(_model: str, _pool: str) -> None:
    """Where no autoscaler tells."""


def record(exchange: Exchange, now_s: float, log: RequestLog, usd_per_token: Price = no_price) -> None:
    """Count a finished request and log it. Never raises for anything a client can cause."""
    model, pool = exchange.model, exchange.pool
    metrics.REQUESTS.labels(model, pool, exchange.route, exchange.code).inc()
    if exchange.accepted_s is not None:
        metrics.OVERHEAD.labels(exchange.route).observe(exchange.accepted_s - exchange.arrived_s)
    if exchange.sent_s is not None and exchange.accepted_s is not None:
        metrics.QUEUE.labels(model).observe(exchange.sent_s - exchange.accepted_s)
    if pool:
        for direction, tokens in _tokens(exchange):
            if tokens:
                metrics.TOKENS.labels(model, pool, direction).inc(tokens)
        if exchange.fallback:
            metrics.FALLBACKS.labels(model, pool, exchange.fallback).inc()
        if exchange.first_byte_s is not None:
            metrics.E2E.labels(model, pool).observe(now_s - exchange.arrived_s)
        if exchange.is_stream:
            exchange.gaps.flush(model, pool)
            if exchange.first_byte_s is not None:
                metrics.TTFT.labels(model, pool).observe(exchange.first_byte_s - exchange.arrived_s)
    log.write(_line(exchange, now_s) | {"usd": _usd(exchange, usd_per_token)})


def _line(exchange: Exchange, now_s: float) -> dict[str, object]:
    return {
        "event": "request",
        "request_id": exchange.request_id,
        "client_request_id": exchange.client_request_id,
        "key": exchange.key_id,
        "method": exchange.method[:16],
        "route": exchange.route,
        "status": int(exchange.code),
        "error": exchange.error_code,
        "model": exchange.model,
        "pool": exchange.pool,
        "replica": exchange.replica,
        "fallback": exchange.fallback,
        "stream": exchange.is_stream,
        "ttft_ms": _ms(exchange.first_byte_s, exchange.arrived_s),
        "duration_ms": _ms(now_s, exchange.arrived_s),
        **exchange.usage,
    }


def _usd(exchange: Exchange, usd_per_token: Price) -> float | None:
    """What the request's tokens have cost at its pool's measured throughput. Cached ones were not computed, neither
    here nor for that price."""
    price = usd_per_token(exchange.model, exchange.pool) if exchange.pool else None
    usage = exchange.usage
    num_computed = usage["prompt_tokens"] - usage["cached_tokens"] + usage["output_tokens"]
    return None if price is None else round(price * num_computed, 9)


def _tokens(exchange: Exchange) -> list[tuple[str, int]]:
    usage = exchange.usage
    return [("prompt", usage["prompt_tokens"]), ("cached", usage["cached_tokens"]), ("output", usage["output_tokens"])]


def _ms(end_s: float | None, start_s: float) -> float | None:
    return None if end_s is None else round((end_s - start_s) * 1000, 2)
