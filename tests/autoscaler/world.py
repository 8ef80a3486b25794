"""Fleets and demands for the policy's tests: the reference fleet, and a world that runs on a manual clock."""

from serving.autoscaler.memory import Memory
from serving.autoscaler.policy import decide
from serving.autoscaler.types import (
    NUM_PROMPT_BUCKETS,
    Demand,
    FallbackBounds,
    Plan,
    PoolSpec,
    PoolState,
    Spec,
    prompt_bucket,
)
from serving.router.prediction import StepModel

GPU_MODEL = StepModel(0.011, 5e-5, 8e-8, 1e-4, 1024, 256, 420_000)
CPU_MODEL = StepModel(0.055, 1.2e-3, 8.7e-7, 1 / 600, 128, 32, 200_000)
GPU = PoolSpec("gpu", 0, 20, GPU_MODEL, 180.0)
CPU = PoolSpec("cpu", 0, 3, CPU_MODEL, 45.0, FallbackBounds(8192, 2048))
SPEC = Spec(pools=(GPU, CPU), ttft_slo_s=5.0, tpot_slo_s=0.15)
PRICES = {"gpu": 3.67, "cpu": 1.43}


def demand(rate_per_s: float, interval_s: float = 5.0, prompt_tokens: int = 1000, output_tokens: int = 200) -> Demand:
    """A steady load that meets its SLO."""
    number = round(rate_per_s * interval_s)
    prompts = [0] * NUM_PROMPT_BUCKETS
    prompts[prompt_bucket(prompt_tokens)] = number
    return Demand(
        interval_s=interval_s,
        num_arrived=number,
        prompt_tokens=number * prompt_tokens,
        prompts=tuple(prompts),
        num_finished=number,
        output_tokens=number * output_tokens,
        num_met=number,
    )


class World:
    """Pools that do what the plan says: a replica is ready one cold start after it was asked for."""

    def __init__(self, spec: Spec = SPEC) -> None:
        self.spec = spec
        self.prices = dict(PRICES)
        self.memory = Memory()
        self.now_s = 1000.0
        self.ready = {pool.name: 0 for pool in spec.pools}
        self.starting: dict[str, list[float]] = {pool.name: [] for pool in spec.pools}
        self.lost: set[str] = set()
        """Pools that give no replica."""
        self.unplaceable: set[str] = set()
        self.takes_s = {pool.name: pool.cold_start_s for pool in spec.pools}

    def step(self, demand: Demand) -> Plan:
        """One decision, carried out."""
        fleet = {}
        for pool in self.spec.pools:
            there = [
                since_s
                for since_s in self.starting[pool.name]
                if pool.name not in self.lost and self.now_s - since_s >= self.takes_s[pool.name]
            ]
            for since_s in there:
                self.starting[pool.name].remove(since_s)
                self.ready[pool.name] += 1
            fleet[pool.name] = PoolState(
                num_ready=self.ready[pool.name],
                starting_age_s=tuple(self.now_s - since_s for since_s in self.starting[pool.name]),
                cold_starts_s=tuple(self.takes_s[pool.name] for _ in there),
                is_placeable=pool.name not in self.unplaceable,
            )
        plan, self.memory = decide(self.now_s, fleet, demand, self.prices, self.spec, self.memory)
        for name, target in plan.targets.items():
            missing = target - self.ready[name] - len(self.starting[name])
            self.starting[name] += [self.now_s] * max(0, missing)
            for _ in range(max(0, -missing)):
                if self.starting[name]:
                    self.starting[name].pop()
                else:
                    self.ready[name] -= 1
        self.now_s += demand.interval_s
        return plan

    def run(self, demand: Demand, for_s: float) -> list[Plan]:
        return [self.step(demand) for _ in range(int(for_s / demand.interval_s))]
