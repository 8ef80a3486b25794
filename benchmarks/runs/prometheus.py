"""What a server says of itself in Prometheus's text format, reduced to the figures a load test is read with.

Ballast's series (`serving/telemetry/metrics.py`) and vLLM's, so that a raw vLLM server can be looked at too. A series
that the server does not have is left out.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.runs.intervals import LEAST_BEYOND, draw_weights, interval
from benchmarks.runs.summary import PERCENTILES

T = TypeVar("T")
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
    "gateway_queue": ("ballast_queue_seconds",),
    "gateway_overhead": ("ballast_gateway_overhead_seconds",),
    "engine_queue": ("vllm:request_queue_time_seconds",),
    "prefill": ("vllm:request_prefill_time_seconds",),
    "decode": ("vllm:request_decode_time_seconds",),
    "server_ttft": ("ballast_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
    "server_itl": ("ballast_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"),
    "server_e2e": ("ballast_request_duration_seconds", "vllm:e2e_request_latency_seconds"),
}
"""The first series that the server has."""
_USD_PER_HOUR = "ballast_usd_per_hour"
_REPLICAS = "ballast_replicas"

Labels = frozenset[tuple[str, str]]
Buckets = dict[float, float]
"""Cumulated counts by upper bound in seconds, in their order."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One scrape. Counters and histograms are totals since their process's start, each replica's by itself: one that
    goes away takes its history out of any sum."""

    gauges: Mapping[str, float]
    counters: Mapping[str, Mapping[Labels, float]]
    buckets: Mapping[str, Mapping[Labels, Buckets]]
    """By the series' name, as ``sums_s``."""
    sums_s: Mapping[str, Mapping[Labels, float]]
    usd_per_hour: Mapping[str, float]
    """By pool."""
    ready_replicas: Mapping[str, float]
    """By pool."""


def read(text: str, model: str | None = None) -> Reading:
    """Without the series of other models than ``model`` (None: of all). Raises ValueError when it is not Prometheus's
    format."""
    values: dict[str, dict[Labels, float]] = defaultdict(dict)
    buckets: dict[str, dict[Labels, Buckets]] = defaultdict(lambda: defaultdict(dict))
    usd_per_hour: dict[str, float] = defaultdict(float)
    ready: dict[str, float] = defaultdict(float)
    for sample in _samples(text):
        if model not in (None, sample.labels.get("model") or sample.labels.get("model_name") or model):
            continue
        pool = sample.labels.get("pool", "")
        labels = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
        if sample.name == _USD_PER_HOUR:
            usd_per_hour[pool] += sample.value
        elif sample.name == _REPLICAS:
            ready[pool] += sample.value * (sample.labels.get("state") == "ready")
        elif sample.name.endswith("_bucket") and "le" in sample.labels:
            buckets[sample.name.removesuffix("_bucket")][labels][float(sample.labels["le"])] = sample.value
        else:
            values[sample.name][labels] = sample.value
    histograms = [series for known in _HISTOGRAMS.values() for series in known if series in buckets]
    return Reading(
        gauges={name: fold(values[series].values()) for name, (series, fold) in _GAUGES.items() if values[series]},
        counters={name: values[series] for name, series in _COUNTERS.items() if values[series]},
        buckets={series: buckets[series] for series in histograms},
        sums_s={series: values[f"{series}_sum"] for series in histograms},
        usd_per_hour=dict(usd_per_hour),
        ready_replicas=dict(ready),
    )


def _samples(text: str) -> Iterator[Sample]:
    try:
        for family in text_string_to_metric_families(text):
            yield from family.samples
    except IndexError as error:  # the parser's, of a label without a name
        raise ValueError(f"no Prometheus text: {error}") from error


def continued(before: Reading, after: Reading) -> Reading:
    """``after`` with the last totals of what it misses: a replica that has gone, or did not answer once, has not begun
    anew."""
    return replace(
        after,
        counters=_merged(before.counters, after.counters),
        buckets=_merged(before.buckets, after.buckets),
        sums_s=_merged(before.sums_s, after.sums_s),
    )


def _merged(old: Mapping[str, Mapping[Labels, T]], new: Mapping[str, Mapping[Labels, T]]) -> dict[str, dict[Labels, T]]:
    return {name: {**old.get(name, {}), **new.get(name, {})} for name in {**old, **new}}


def over(readings: Sequence[Reading]) -> dict[str, Any]:
    """What happened from the first scrape to the last, a JSON object; what happened between two scrapes is a block of
    the bootstrap (`benchmarks/runs/intervals.py`). Each reading has to be `continued` from the one before. A total that
    falls has begun anew: its process was replaced. Empty of fewer than two readings."""
    if len(readings) < 2:
        return {}
    steps = list(pairwise(readings))
    found: dict[str, Any] = {
        f"num_{name}": sum(_grown(before.counters.get(name, {}), after.counters.get(name, {}))
                           for before, after in steps)
        for name in readings[-1].counters
    }  # fmt: skip
    if found.get("num_prefix_cache_queries_tokens"):
        hits = found.get("num_prefix_cache_hits_tokens", 0.0)
        found["prefix_cache_hit_share"] = round(hits / found["num_prefix_cache_queries_tokens"], 4)
    last = readings[-1].buckets
    for name, known in _HISTOGRAMS.items():
        if (series := next((one for one in known if one in last), None)) is None:
            continue
        bounds_s = sorted({bound for buckets in last[series].values() for bound in buckets})
        counts = np.array([_counted(before, after, series, bounds_s) for before, after in steps])
        number = int(counts[:, -1].sum())
        if number > 0:
            total_s = sum(
                _grown(before.sums_s.get(series, {}), after.sums_s.get(series, {})) for before, after in steps
            )
            figures = _percentiles(counts, np.array(bounds_s))
            found[f"{name}_ms"] = {"n": number, "mean": _ms(total_s / number), **figures}
    return found


def _grown(before: Mapping[Labels, float], after: Mapping[Labels, float]) -> float:
    """By how much all series together have."""
    olds = ((before.get(labels, 0.0), new) for labels, new in after.items())
    return sum(new - old if new >= old else new for old, new in olds)


def _counted(before: Reading, after: Reading, series: str, bounds: Sequence[float]) -> NDArray[np.float64]:
    """By bucket, how much was counted between two scrapes; cumulated."""
    found = np.zeros(len(bounds))
    for labels, new in after.buckets.get(series, {}).items():
        old = before.buckets.get(series, {}).get(labels, {})
        is_anew = new.get(math.inf, 0.0) < old.get(math.inf, 0.0)
        found += [max(0.0, new.get(bound, 0.0) - (0.0 if is_anew else old.get(bound, 0.0))) for bound in bounds]
    return found


def _percentiles(counts: NDArray[np.float64], bounds_s: NDArray[np.float64]) -> dict[str, Any]:
    """Of counts [blocks, buckets], cumulated over buckets; with intervals where there is enough to draw again."""
    shares = tuple(PERCENTILES.values())
    total = counts.sum(axis=0, keepdims=True)
    values = quantiles_s(total, bounds_s, shares)[0]
    drawn = None
    if len(counts) >= LEAST_BEYOND:
        weights = draw_weights(np.random.default_rng(0), [len(counts)])
        drawn = quantiles_s(weights @ counts, bounds_s, shares)
    found: dict[str, Any] = {}
    for place, (name, share) in enumerate(PERCENTILES.items()):
        ci95 = None
        if drawn is not None and total[0, -1] * (1.0 - share) >= LEAST_BEYOND:
            low, high = interval(drawn[:, place])
            ci95 = None if math.isnan(low) else [_ms(low), _ms(high)]
        # Anywhere in the first bucket: its bound is all that is known, and a bucket is often as wide as what is in it.
        is_at_most = bool(values[place] <= bounds_s[0])
        value_s = bounds_s[0] if is_at_most else values[place]
        found[name] = {"value": _ms(value_s), "ci95": None if is_at_most else ci95, "is_at_most": is_at_most}
    return found


def _ms(value_s: float) -> float:
    return round(1e3 * float(value_s), 3)


def quantiles_s(
    counts: NDArray[np.float64], bounds_s: NDArray[np.float64], shares: Sequence[float]
) -> NDArray[np.float64]:
    """Quantiles of histograms, cumulated counts [R, B] over upper bounds [B], the last of them infinite.

    Linear within the bucket, as PromQL's ``histogram_quantile``; the last finite bound for what is over it. NaN for one
    that holds nothing.
    """
    lower_s = np.concatenate([[0.0], bounds_s[:-1]])
    upper_s = np.where(np.isinf(bounds_s), lower_s, bounds_s)
    below = np.concatenate([np.zeros((len(counts), 1)), counts[:, :-1]], axis=1)
    rows = np.arange(len(counts))
    found = np.empty((len(counts), len(shares)))
    for place, share in enumerate(shares):
        rank = share * counts[:, -1]
        bucket = np.argmax((counts >= rank[:, None]) & (counts > below), axis=1)
        inside = np.maximum(counts[rows, bucket] - below[rows, bucket], 1e-12)
        part = np.clip((rank - below[rows, bucket]) / inside, 0.0, 1.0)
        value_s = lower_s[bucket] + part * (upper_s[bucket] - lower_s[bucket])
        found[:, place] = np.where(counts[:, -1] > 0.0, value_s, np.nan)
    return found
