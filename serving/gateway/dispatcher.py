"""What the requests of one gateway share: the replicas, the lines before them, and the bounds on failing over."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.config import Config
from serving.config.model import ModelConfig
from serving.config.pool import Fallback
from serving.gateway.deaths import SharedQuarantine
from serving.protocol.stats import DemandStats, PoolStats, Stats
from serving.router.affinity import Affinity
from serving.router.choice import Rules
from serving.router.demand import DemandMeter
from serving.router.directory import Directory
from serving.router.failover import Quarantine, RetryBudget
from serving.router.line import Line
from serving.router.reserve import Reserve
from serving.telemetry import metrics

MAX_DEATHS = 2
"""Of engines, on one request."""

Coming = Callable[[str, bool], float | None]
"""Of a model: see ``coming_s`` of `Line`."""


def nobody_knows(_model: str, _allows_fallback: bool) -> float:
    """Where no autoscaler tells."""
    return float("nan")


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """What the requests of one model share in a gateway."""

    model: ModelConfig
    line: Line
    demand: DemandMeter
    budget: RetryBudget
    affinity: Affinity
    fallbacks: Mapping[str, Fallback]
    """By pool."""


class Dispatcher:
    """One per gateway."""

    def __init__(self, directory: Directory, config: Config, deaths_path: Path, coming: Coming = nobody_knows) -> None:
        self.directory = directory
        self.limits = limits = config.limits
        self.quarantine = SharedQuarantine(Quarantine(MAX_DEATHS, limits.quarantine_s), deaths_path)
        self._num_gateways = config.server.gateways
        self.routes = {model.name: self._routes(model, coming) for model in config.models}
        directory.on_change(self.pump)

    def pump(self) -> None:
        for routes in self.routes.values():
            routes.line.pump()

    def tick(self) -> None:
        """Call about twice a second."""
        for name, routes in self.routes.items():
            routes.line.tick()
            metrics.WAITING.labels(name, "in_time").set(routes.line.num_waiting - routes.line.num_late)
            metrics.WAITING.labels(name, "late").set(routes.line.num_late)

    def close(self) -> None:
        """Nobody waits any longer, and nobody is sent to a replica any more."""
        for routes in self.routes.values():
            routes.line.close()

    def stats(self) -> Stats:
        """What the autoscaler is told."""
        replicas = self.directory.all()
        stats = DemandStats.as_streams({replica.name: replica.link.num_streams for replica in replicas})
        for name, routes in self.routes.items():
            stats |= self._demand_stats(routes).as_stats(name, routes.demand.prompts)
            for pool in routes.model.pools:
                stats |= self._pool_stats(name, pool.name).as_stats(name, pool.name)
        return stats

    def _demand_stats(self, routes: ModelRoutes) -> DemandStats:
        demand, late, turned_away = routes.demand, list(routes.line.late), routes.line.turned_away
        return DemandStats(
            num_arrived=demand.num_arrived,
            prompt_tokens=demand.prompt_tokens,
            num_finished=demand.num_finished,
            output_tokens=demand.output_tokens,
            num_met=demand.num_met,
            num_missed=demand.num_missed,
            num_queued=routes.line.num_waiting - len(late),
            num_late=len(late),
            late_prompt_tokens=sum(waiting.prompt_tokens for waiting in late),
            oldest_late_s=time.monotonic() - min(waiting.arrived_s for waiting in late) if late else 0.0,
            num_turned_away=len(turned_away),
            turned_away_prompt_tokens=sum(turned_away),
        )

    def _pool_stats(self, model: str, pool: str) -> PoolStats:
        """Speeds are the mean over the pool's replicas; all of them have the same bounds."""
        loads = [
            replica.load
            for replica in self.directory.replicas(model)
            if replica.address.pool == pool and replica.load is not None
        ]
        work = self.directory.work(model, pool)
        if not loads:
            return PoolStats(*work)
        speed = [sum(values) / len(loads) for values in zip(*(load["speed"] for load in loads), strict=True)]
        first = loads[0]
        bounds = (first["max_num_batched_tokens"], first["max_num_seqs"], first["kv_capacity_tokens"])
        return PoolStats(*work, *speed, *map(float, bounds))

    def _routes(self, model: ModelConfig, coming: Coming) -> ModelRoutes:
        limits = self.limits
        line = Line(
            Rules(tpot_slo_s=model.slo.tpot_s, is_shedding=model.slo.shed),
            limits.max_queued_requests,
            limits.queue_timeout_s,
            lambda allows_fallback: coming(model.name, allows_fallback),
            Reserve(self._num_gateways),
        )
        fallbacks = {pool.name: pool.fallback for pool in model.pools if pool.fallback is not None}
        budget = RetryBudget(limits.retry_budget_ratio, limits.retry_budget_floor)
        return ModelRoutes(model, line, DemandMeter(), budget, Affinity(), fallbacks)
