"""What a server says of itself in Prometheus's text format, reduced to the figures a load test is read with.

Ballast's series (`serving/telemetry/metrics.py`) and vLLM's, so that a raw vLLM server can be looked at too. A series
that the server does not have is left out.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_GAUGES: dict[str, tuple[str, Callable[[Iterable[float]], float]]] = {
    "running_requests": ("vllm:num_requests_running", sum),
    "waiting_requests": ("vllm:num_requests_waiting", sum),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", max),
    "gateway_waiting_requests": ("ballast_requests_waiting", sum),
    "in_flight_requests": ("ballast_requests_in_flight", sum),
}
_COUNTERS = {
    "preemptions": "vllm:num_preemptions_total",
    "prefix_cache_queries_tokens": "vllm:prefix_cache_queries_total",
    "prefix_cache_hits_tokens": "vllm:prefix_cache_hits_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "failovers": "ballast_failovers_total",
    "fallbacks": "ballast_fallbacks_total",
    "lost_requests": "ballast_requests_lost_total",
    "broken_streams": "ballast_streams_broken_total",
}
_HISTOGRAMS = {
    "gateway_queue": "ballast_queue_seconds",
    "gateway_overhead": "ballast_gateway_overhead_seconds",
    "engine_queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decode": "vllm:request_decode_time_seconds",
    "server_ttft": "ballast_time_to_first_token_seconds",
}
_USD_PER_HOUR = "ballast_usd_per_hour"
_REPLICAS = "ballast_replicas"

Buckets = dict[float, float]
"""Cumulated counts by upper bound in seconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One scrape. Counters and histograms are totals since the server's start."""

    gauges: Mapping[str, float]
    counters: Mapping[str, float]
    buckets: Mapping[str, Buckets]
    sums_s: Mapping[str, float]
    usd_per_hour: Mapping[str, float]
    """By pool."""
    ready_replicas: Mapping[str, float]
    """By pool."""


def read(text: str) -> Reading:
    """Raises ValueError when it is not Prometheus's format."""
    values: dict[str, list[float]] = defaultdict(list)
    buckets: dict[str, Buckets] = defaultdict(lambda: defaultdict(float))
    usd_per_hour: dict[str, float] = defaultdict(float)
    ready: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            pool = sample.labels.get("pool", "")
            if sample.name == _USD_PER_HOUR:
                usd_per_hour[pool] += sample.value
            elif sample.name == _REPLICAS:
                ready[pool] += sample.value * (sample.labels.get("state") == "ready")
            elif sample.name.endswith("_bucket"):
                buckets[sample.name.removesuffix("_bucket")][float(sample.labels["le"])] += sample.value
            else:
                values[sample.name].append(sample.value)
    return Reading(
        gauges={name: fold(values[series]) for name, (series, fold) in _GAUGES.items() if values[series]},
        counters={name: sum(values[series]) for name, series in _COUNTERS.items() if values[series]},
        buckets={name: dict(buckets[series]) for name, series in _HISTOGRAMS.items() if series in buckets},
        sums_s={name: sum(values[f"{series}_sum"]) for name, series in _HISTOGRAMS.items() if series in buckets},
        usd_per_hour=dict(usd_per_hour),
        ready_replicas=dict(ready),
    )


def between(first: Reading, last: Reading) -> dict[str, Any]:
    """What happened between two scrapes, a JSON object. Counters of a restarted server count from nothing."""
    counters = {
        name: value - first.counters.get(name, 0.0) if value >= first.counters.get(name, 0.0) else value
        for name, value in last.counters.items()
    }
    found: dict[str, Any] = {f"num_{name}": value for name, value in counters.items()}
    if counters.get("prefix_cache_queries_tokens"):
        hits, queries = counters.get("prefix_cache_hits_tokens", 0.0), counters["prefix_cache_queries_tokens"]
        found["prefix_cache_hit_share"] = round(hits / queries, 4)
    for name, buckets in last.buckets.items():
        counts = {bound: count - first.buckets.get(name, {}).get(bound, 0.0) for bound, count in buckets.items()}
        number = counts.get(math.inf, 0.0)
        if number > 0:
            total_s = last.sums_s[name] - first.sums_s.get(name, 0.0)
            found[f"{name}_ms"] = {
                "n": int(number),
                "mean": round(1e3 * total_s / number, 3),
                "p50": _ms(quantile_s(counts, 0.5)),
                "p99": _ms(quantile_s(counts, 0.99)),
            }
    return found


def _ms(value_s: float) -> float:
    return round(1e3 * value_s, 3)


def quantile_s(buckets: Mapping[float, float], share: float) -> float:
    """Linear within the bucket, as PromQL's ``histogram_quantile``; the last finite bound for what is over it."""
    rank = share * buckets[math.inf]
    below_s = below = 0.0
    for bound_s, count in sorted(buckets.items()):
        if count >= rank and count > below:
            return below_s if math.isinf(bound_s) else below_s + (bound_s - below_s) * (rank - below) / (count - below)
        below_s, below = bound_s, count
    return below_s
