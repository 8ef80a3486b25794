"""Every metric Ballast exports, its name, labels and buckets declared once.

Gateways share one folder of memory-mapped values (prometheus_client's multiprocess mode), so a scrape of any of them
shows the sum and a restarted gateway loses no counts. Label values are bounded: models, pools and routes come from
the config.
"""

import os
from bisect import bisect_left

from prometheus_client import Counter, Gauge, Histogram, values

if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    # The library asks the kernel for the process id at every increment, in case the process has forked; a gateway
    # does not fork.
    _PID = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: _PID)  # type: ignore[no-untyped-call]

TIME_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
ITL_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)

REQUESTS = Counter("ballast_requests", "Requests by outcome.", ["model", "pool", "route", "code"])
TOKENS = Counter(
    "ballast_tokens", "Tokens by direction: prompt (cached included), cached, output.", ["model", "pool", "direction"]
)
TTFT = Histogram(
    "ballast_time_to_first_token_seconds",
    "Arrival to first chunk, of streams.",
    ["model", "pool"],
    buckets=TIME_BUCKETS_S,
)
ITL = Histogram(
    "ballast_inter_token_latency_seconds", "Between chunks of one stream.", ["model", "pool"], buckets=ITL_BUCKETS_S
)
E2E = Histogram("ballast_request_duration_seconds", "Arrival to last byte.", ["model", "pool"], buckets=TIME_BUCKETS_S)
QUEUE = Histogram("ballast_queue_seconds", "Waiting in the gateway for a replica.", ["model"], buckets=TIME_BUCKETS_S)
OVERHEAD = Histogram(
    "ballast_gateway_overhead_seconds", "Gateway work before the replica: authentication, body, checks.", ["route"],
    buckets=TIME_BUCKETS_S,
)  # fmt: skip
IN_FLIGHT = Gauge("ballast_requests_in_flight", "Requests being served.", multiprocess_mode="livesum")
REPLICAS = Gauge(
    "ballast_replicas",
    "Replicas this gateway knows, by state.",
    ["model", "pool", "state"],
    multiprocess_mode="livemax",
)
REPLICA_START = Gauge(
    "ballast_replica_start_seconds",
    "How long each step of the start of the pool's youngest replica took.",
    ["model", "pool", "step"],
    multiprocess_mode="livemostrecent",
)
STREAMS_BROKEN = Counter(
    "ballast_streams_broken", "Streams ended by an error frame after their first byte.", ["model", "pool"]
)
LOST = Counter(
    "ballast_requests_lost",
    "Accepted requests that ended in `engine_unavailable`: their replica was lost, or their gateway had to end.",
    ["model"],
)
FAILOVERS = Counter(
    "ballast_failovers",
    "Requests moved to another replica: restarted from their start, or continued from the tokens so far.",
    ["model", "kind"],
)
FALLBACKS = Counter("ballast_fallbacks", "Requests that a fallback pool served, and why.", ["model", "pool", "reason"])
SLO = Counter("ballast_slo_requests", "Requests that met or missed the model's SLO.", ["model", "outcome"])
WAITING = Gauge(
    "ballast_requests_waiting",
    "Requests that wait in the gateways for a replica, in time or late.",
    ["model", "state"],
    multiprocess_mode="livesum",
)
_OF_POOL = ["model", "pool"]
TARGET_REPLICAS = Gauge(
    "ballast_target_replicas", "Replicas that the autoscaler wants.", _OF_POOL, multiprocess_mode="livemax"
)
STARTING_REPLICAS = Gauge(
    "ballast_starting_replicas", "Replicas asked for that are not ready.", _OF_POOL, multiprocess_mode="livemax"
)
AVAILABLE = Gauge(
    "ballast_pool_available", "1: it could start a replica; 0: no such device, or starts have failed lately.", _OF_POOL,
    multiprocess_mode="livemax",
)  # fmt: skip
USD_PER_HOUR = Gauge(
    "ballast_usd_per_hour", "What a pool's replicas cost now, starting ones included.", _OF_POOL,
    multiprocess_mode="livemax",
)  # fmt: skip
USD_PER_MILLION_TOKENS = Gauge(
    "ballast_usd_per_million_tokens",
    "Over the last hour: by usage (while engines work) and by allocation (idle time included).",
    ["model", "pool", "basis"],
    multiprocess_mode="livemax",
)
BUDGET_SPENT = Gauge(
    "ballast_error_budget_spent", "Misses of the SLO over those allowed; over 1 it is overspent.", ["model"],
    multiprocess_mode="livemax",
)  # fmt: skip
FORECAST = Gauge(
    "ballast_forecast_requests_per_second", "Rate that the autoscaler plans for.", ["model"],
    multiprocess_mode="livemax",
)  # fmt: skip
QUARANTINED = Counter("ballast_requests_quarantined", "Requests refused because engines died on them.", ["model"])
LOOP_LAG = Histogram(
    "ballast_gateway_loop_lag_seconds", "How late the gateway's event loop runs.", buckets=ITL_BUCKETS_S
)


class LatencyBuffer:
    """Bucket counts of one stream's gaps, added to ``ITL`` once at its end: observing per chunk would cost more than
    relaying it.
    """

    __slots__ = ("_counts", "_total_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(ITL_BUCKETS_S) + 1)
        self._total_s = 0.0

    def add(self, gap_s: float) -> None:
        self._counts[bisect_left(ITL_BUCKETS_S, gap_s)] += 1
        self._total_s += gap_s

    def flush(self, model: str, pool: str) -> None:
        histogram = ITL.labels(model, pool)
        # prometheus_client has no public way to add many observations at once; these two attributes are its storage.
        for bucket, count in zip(histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        histogram._sum.inc(self._total_s)
