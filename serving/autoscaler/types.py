"""What the autoscaler is told and what it answers: frozen values, nothing else.

    decide(now_s, fleet, demand, prices, spec, memory) -> (plan, memory)

Times are seconds on any one clock. Figures may be wrong (NaN, negative, infinite): `decide` takes such a figure for
"not known".
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.autoscaler.tuning import Tuning
from serving.router.prediction import StepModel

NUM_PROMPT_BUCKETS = 20
"""Prompts are counted by length: bucket b holds those of 2^(b−1) to 2^b − 1 tokens."""


def prompt_bucket(prompt_tokens: int) -> int:
    """Which bucket of `Demand.prompts` counts a prompt of this length."""
    return min(NUM_PROMPT_BUCKETS - 1, max(0, prompt_tokens).bit_length())


@dataclass(frozen=True, slots=True)
class FallbackBounds:
    """Longest prompt and longest answer that a fallback pool takes over."""

    max_prompt_tokens: int
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool as configured, with the calibrated speeds of one replica."""

    name: str
    min_replicas: int
    max_replicas: int
    model: StepModel
    cold_start_s: float
    """From the decision to ready, before any was seen."""
    fallback: FallbackBounds | None = None
    """Set: the pool only stands in for the others."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What is promised, at what bounds."""

    pools: tuple[PoolSpec, ...]
    ttft_slo_s: float
    tpot_slo_s: float
    objective: float = 0.99
    """Share of requests that must meet the SLO. The rest is the error budget."""
    max_usd_per_hour: float | None = None
    target_usd_per_million_tokens: float | None = None
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(frozen=True, slots=True)
class Work:
    """What the engines of a pool did since the last decision, and the time they were not idle."""

    num_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    kv_token_steps: float = 0.0
    """Tokens in the KV cache, summed over steps."""
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool now."""

    num_ready: int
    starting_age_s: tuple[float, ...] = ()
    """How long ago each replica was asked for that is not ready yet."""
    cold_starts_s: tuple[float, ...] = ()
    """How long those took that became ready since the last decision, as far as they were seen from the beginning."""
    work: Work = Work()
    is_placeable: bool = True
    """False: the cluster has no such device at all."""
    num_came_up: int = 0
    """All that became ready since the last decision."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What came in and what became of it since the last decision, and what waits now."""

    interval_s: float
    num_arrived: int = 0
    prompt_tokens: int = 0
    prompts: tuple[int, ...] = ()
    """Arrivals by length of prompt (`prompt_bucket`)."""
    num_finished: int = 0
    output_tokens: int = 0
    """Of the finished ones."""
    num_met: int = 0
    num_missed: int = 0
    """Requests whose fate against the SLO became known."""
    num_queued: int = 0
    """In the gateway, still able to meet their deadline."""
    num_late: int = 0
    """In the gateway, no longer able to."""
    late_prompt_tokens: int = 0
    oldest_late_s: float = 0.0
    num_turned_away: int = 0
    """Refused a moment ago, because nothing was up that may serve them though something could have been started."""
    turned_away_prompt_tokens: int = 0


Fleet = Mapping[str, PoolState]
"""By pool name. A pool that is not there is not known: it is left as it is."""

Prices = Mapping[str, float]
"""US dollars per replica and hour, by pool name."""


class Binding(enum.StrEnum):
    """What kept the plan from being cheaper, or from being bigger."""

    SLO = "slo"
    """Fewer replicas would cost more in misses than they save."""
    REPLICAS_MIN = "replicas.min"
    REPLICAS_MAX = "replicas.max"
    MAX_USD_PER_HOUR = "max_usd_per_hour"
    TARGET_USD_PER_MILLION_TOKENS = "target_usd_per_million_tokens"
    CAPACITY = "capacity"
    """A pool gives no more replicas for now: it is backed off from."""
    PATIENCE = "patience"
    """Nothing is up that may serve somebody who has waited long enough, or was turned away."""
    HOLD = "hold"
    """Fewer would do, but not for long enough yet."""
    RELEARNING = "relearning"
    """Fewer might do, but too little was seen since the start to say so."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one pool has its target."""

    pool: str
    target: int
    binding: Binding
    wanted: int
    """Before holds, and of what the pool can give now."""
    capacity_per_s: float
    """Requests per second that one replica carries, of the present mix."""
    cold_start_s: float
    """90th percentile."""
    backed_off_until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How many replicas each pool should have, and why."""

    targets: Mapping[str, int]
    binding: Binding
    reasons: tuple[Reason, ...]
    forecast_per_s: float
    """Requests per second to plan for: what is expected when a replica asked for now is ready, and what waits."""
    miss_usd: float
    """Shadow price of a missed request."""
    budget_spent: float
    """Misses over allowed misses, in the budget's window: 1 is all of it."""
    expected_miss: float
    """Share of requests expected to miss once the plan is in place, beyond those that no fleet would have saved."""
    usd_per_hour: float
    usd_per_million_tokens: float | None
    """At the present load; None without any."""
