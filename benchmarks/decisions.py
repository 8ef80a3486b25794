"""What one decision costs: ``choose`` at 64 replicas and ``decide`` at 8 pools. ``python -m benchmarks.decisions``.

Prints medians and 99th percentiles in µs, and writes them to benchmarks/results/decisions.json. The fleets are made up;
both functions are the production ones. `decide` runs through two hours of a load that swings between 2 and 40 requests
per second, so that searches, holds and starts are in it.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import environment
from serving.autoscaler.memory import Memory
from serving.autoscaler.policy import decide
from serving.autoscaler.types import (
    NUM_PROMPT_BUCKETS,
    Demand,
    FallbackBounds,
    PoolSpec,
    PoolState,
    Spec,
    Work,
    prompt_bucket,
)
from serving.router.choice import Rules, choose
from serving.router.prediction import StepModel

RESULT = Path(__file__).parent / "results" / "decisions.json"
NUM_REPLICAS = 64
NUM_POOLS = 8
MAX_CHOOSE_US = 20.0
MAX_DECIDE_US = 2000.0
_NUM_CHOICES = 20_000
_INTERVAL_S = 2.0
_SPAN_S = 2 * 3600.0
_PROMPT_TOKENS, _OUTPUT_TOKENS = 1000, 200


@dataclass(slots=True)
class _Replica:
    """What `choose` looks at, as plain attributes."""

    name: str
    backlog_s: float
    num_running: int
    is_ready: bool = True
    is_fallback: bool = False
    prefill_tokens_per_s: float = 9000.0
    tpot_s: float = 0.03
    num_free_slots: int = 200
    kv_free_tokens: int = 300_000


@dataclass(slots=True)
class _Request:
    prompt_tokens: int
    home: str | None
    expected_output_tokens: float = 200.0
    deadline_s: float = 5.0
    is_late: bool = False
    is_batch: bool = False
    cached_tokens: int = 0
    allows_fallback: bool = True


def time_choose(num_replicas: int, seed: int = 1) -> list[float]:
    """Seconds of each of many choices among replicas of random load; every second request has a home."""
    draw = random.Random(seed)
    rules = Rules(tpot_slo_s=0.15)
    times_s = []
    for _ in range(_NUM_CHOICES // 100):
        replicas = [_Replica(f"r{index}", draw.uniform(0.0, 0.5), draw.randrange(100)) for index in range(num_replicas)]
        for number in range(100):
            home = f"r{draw.randrange(num_replicas)}" if number % 2 else None
            request, uniform = _Request(draw.randrange(50, 4000), home), draw.random()
            began_s = time.perf_counter()
            choose(request, replicas, 0.0, uniform, rules)
            times_s.append(time.perf_counter() - began_s)
    return times_s


def time_decide(num_pools: int, seed: int = 1) -> list[float]:
    """Seconds of each decision of `_SPAN_S`; what is asked for is there at once."""
    draw = random.Random(seed)
    pools = tuple(_pool(index) for index in range(num_pools))
    prices = {pool.name: 4.0 + 0.7 * index if not pool.fallback else 1.2 for index, pool in enumerate(pools)}
    spec = Spec(pools=pools, ttft_slo_s=5.0, tpot_slo_s=0.15)
    memory, ready, times_s = Memory(), dict.fromkeys(prices, 0), []
    for step in range(int(_SPAN_S / _INTERVAL_S)):
        now_s = step * _INTERVAL_S
        rate_per_s = 21.0 - 19.0 * math.cos(now_s / 400.0)
        demand = _demand(draw, rate_per_s)
        fleet = {
            name: PoolState(number, work=Work(60 * number, 8000 * number, 1500 * number, 1e6 * number, 1.5 * number))
            for name, number in ready.items()
        }
        began_s = time.perf_counter()
        plan, memory = decide(now_s, fleet, demand, prices, spec, memory)
        times_s.append(time.perf_counter() - began_s)
        ready = dict(plan.targets)
    return times_s


def _pool(index: int) -> PoolSpec:
    """Every fourth one a CPU pool that stands in; the others GPUs of growing speed and price."""
    if index % 4 == 1:
        model = StepModel(0.055, 1.2e-3, 8.7e-7, 1 / 600, 128, 32, 200_000)
        return PoolSpec(f"cpu{index}", 0, 8, model, 45.0, FallbackBounds(8192, 2048))
    model = StepModel(0.011, 5e-5, 8e-8, 1e-4 / (1.0 + 0.15 * index), 1024, 256, 420_000)
    return PoolSpec(f"gpu{index}", 0, 16, model, 180.0)


def _demand(draw: random.Random, rate_per_s: float) -> Demand:
    number = max(0, round(draw.gauss(rate_per_s * _INTERVAL_S, math.sqrt(rate_per_s * _INTERVAL_S))))
    prompts = [0] * NUM_PROMPT_BUCKETS
    prompts[prompt_bucket(_PROMPT_TOKENS)] = number
    return Demand(
        interval_s=_INTERVAL_S,
        num_arrived=number,
        prompt_tokens=number * _PROMPT_TOKENS,
        prompts=tuple(prompts),
        num_finished=number,
        output_tokens=number * _OUTPUT_TOKENS,
        num_met=number,
    )


def _in_us(times_s: list[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    return {
        "median_us": round(ordered[len(ordered) // 2] * 1e6, 2),
        "p99_us": round(ordered[int(0.99 * len(ordered))] * 1e6, 2),
        "num_calls": len(ordered),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a median is over its limit."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    options.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help="default: %(default)s")
    path = options.parse_args(arguments).json
    head = environment.describe()
    measured = {
        f"choose at {NUM_REPLICAS} replicas": (_in_us(time_choose(NUM_REPLICAS)), MAX_CHOOSE_US),
        f"decide at {NUM_POOLS} pools": (_in_us(time_decide(NUM_POOLS)), MAX_DECIDE_US),
        "decide at 2 pools": (_in_us(time_decide(2)), MAX_DECIDE_US),
    }
    for name, (figures, limit_us) in measured.items():
        print(
            f"{name:<24} median {figures['median_us']:8.1f} µs   99th percentile {figures['p99_us']:8.1f} µs   "
            f"limit {limit_us:.0f} µs"
        )
    results = {name: {**figures, "limit_us": limit_us} for name, (figures, limit_us) in measured.items()}
    environment.write(path, {**head, "results": results})
    return int(any(figures["median_us"] > limit_us for figures, limit_us in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
