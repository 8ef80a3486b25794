"""Ray Serve's controller asks this for the number of replicas of every pool: an application-level autoscaling policy.

It is asked ten times a second inside the controller's own loop, so it decides every two seconds, answers from memory
in between, and leaves disk and network to a thread. It never raises: one exception would freeze the state of every
application (Ray 2.60, `_private/controller.py`).
"""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from serving.autoscaler.controller import Looked, ModelAutoscaler
from serving.autoscaler.decisions import Decision, DecisionLog, Start
from serving.autoscaler.observe import GatewayReading, PoolReading
from serving.autoscaler.stop_order import Streams, install
from serving.autoscaler.types import NUM_PROMPT_BUCKETS
from serving.config import Config
from serving.protocol.board import KEY, Board, ModelBoard
from serving.protocol.stats import DemandStats, PoolStats
from serving.telemetry.logs import configure_logs

logger = logging.getLogger("ballast.autoscaler")

DECISION_INTERVAL_S = 2.0
PLACEMENT_INTERVAL_S = 10.0
GATEWAY = "gateway"


class Cluster(Protocol):
    """What the policy's thread needs of Ray. Both may block, and raise what they like."""

    def publish(self, board: Board) -> None: ...

    def stop_least_busy(self, streams: Streams) -> None:
        """Have a pool that is made smaller lose the replicas with fewest ``streams``."""

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """The resources of each node that is alive."""


class RayCluster:
    """`Cluster` in a process of Ray's."""

    def publish(self, board: Board) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(KEY, board.encode(), overwrite=True)

    def stop_least_busy(self, streams: Streams) -> None:
        from ray.serve._private.deployment_scheduler import DeploymentScheduler

        install(DeploymentScheduler, streams)

    def nodes(self) -> Sequence[Mapping[str, float]]:
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class FleetPolicy:
    """Constructed once by the controller, with JSON values.

    Args:
        config: the whole config.
        deployments: (model, pool, deployment name) of every pool.
        folder: where decisions are recorded.
        cluster: None: Ray.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: dict[str, Any],
        deployments: Sequence[Sequence[str]],
        folder: str,
        cluster: Cluster | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parsed = Config.model_validate(config)
        self._is_applied = parsed.autoscaler.mode == "act"
        self._pools = {name: (model, pool) for model, pool, name in deployments}
        self._models = {model.name: ModelAutoscaler(model, parsed.autoscaler) for model in parsed.models}
        self._targets: dict[Any, int] = {}
        self._decided_s = -math.inf
        self._clock = clock
        self._streams: dict[str, float] = {}
        if cluster is None:
            cluster = RayCluster()
            with contextlib.suppress(OSError):  # nobody else has told the controller's process where our log is
                configure_logs(parsed.server.log_level, parsed.server.log_path)
        with contextlib.suppress(Exception):
            cluster.stop_least_busy(lambda: self._streams)
        self._scribe = _Scribe(parsed, Path(folder), cluster, clock)
        self._scribe.start()

    def __del__(self) -> None:
        """A new config brings a new policy; the thread of the old one must not stay."""
        if hasattr(self, "_scribe"):
            self._scribe.close()

    def __call__(self, contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], None]:
        try:
            now_s = self._clock()
            if now_s - self._decided_s >= DECISION_INTERVAL_S:
                self._decided_s = now_s
                self._targets = self._decide(contexts, now_s)
            return {identity: self._targets[identity] for identity in contexts if identity in self._targets}, None
        except Exception:  # whatever it is, the controller must not see it
            logger.exception("no decision could be made; the fleet stays as it is")
            return {}, None

    def _decide(self, contexts: Mapping[Any, Any], now_s: float) -> dict[Any, int]:
        readings: dict[str, dict[str, PoolReading]] = {name: {} for name in self._models}
        identities = {}
        said = next((_latest(c) for c in contexts.values() if c.deployment_name == GATEWAY), {})
        # Until a gateway was asked for our figures, Ray reports only its own of it.
        gateways = {who: stats for who, stats in said.items() if DemandStats.are_in(stats)}
        self._streams = _streams(gateways.values())
        for identity, context in contexts.items():
            if (place := self._pools.get(context.deployment_name)) is not None:
                model, pool = place
                readings[model][pool] = PoolReading(
                    running=frozenset(replica.unique_id for replica in context.running_replicas),
                    target=context.target_num_replicas,
                    gateways={who: PoolStats.read(stats, model, pool) for who, stats in gateways.items()},
                    is_placeable=self._scribe.is_placeable(model, pool),
                )
                identities[model, pool] = identity
        targets: dict[Any, int] = {}
        boards: dict[str, ModelBoard] = {}
        for name, autoscaler in self._models.items():
            if len(readings[name]) < len(autoscaler.model.pools):
                continue  # Ray Serve is still taking them in, and one that is not seen would count as empty
            looked = Looked(readings[name], {who: _gateway_reading(stats, name) for who, stats in gateways.items()})
            try:
                decision, start = autoscaler.decide(looked, now_s)
                boards[name] = autoscaler.board(decision)
            except Exception:  # one model's trouble is not the others'
                logger.exception("no decision could be made for %s; its pools stay as they are", name)
                own = (what for (model, _), what in identities.items() if model == name)
                targets |= {what: self._targets[what] for what in own if what in self._targets}
                continue
            self._scribe.tell(decision, start)
            if self._is_applied:
                targets |= {identities[name, pool]: target for pool, target in decision.plan.targets.items()}
        self._scribe.tell_gateways(Board(round(time.time(), 3), boards))
        return targets


def _gateway_reading(stats: Mapping[str, float], model: str) -> GatewayReading:
    return GatewayReading(DemandStats.read(stats, model), DemandStats.read_prompts(stats, model, NUM_PROMPT_BUCKETS))


def _streams(gateways: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Open streams by replica, of all gateways."""
    found: dict[str, float] = {}
    for stats in gateways:
        for replica, number in DemandStats.read_streams(stats).items():
            found[replica] = found.get(replica, 0.0) + number
    return found


def _latest(context: Any) -> dict[str, dict[str, float]]:
    """By replica, the last of each figure that it has reported."""
    found: dict[str, dict[str, float]] = {}
    for name, by_replica in (context.raw_metrics or {}).items():
        for replica, series in by_replica.items():
            if series:
                found.setdefault(replica.unique_id, {})[name] = series[-1].value
    return found


class _Scribe(threading.Thread):
    """Writes decisions down, tells gateways, and looks which pools the cluster has devices for."""

    def __init__(self, config: Config, folder: Path, cluster: Cluster, clock: Callable[[], float]) -> None:
        super().__init__(name="ballast-autoscaler", daemon=True)
        self._config = config
        self._folder = folder
        self._cluster = cluster
        self._clock = clock
        self._todo: queue.SimpleQueue[tuple[Decision, Start] | Board | None] = queue.SimpleQueue()
        self._unplaceable: frozenset[tuple[str, str]] = frozenset()
        with contextlib.suppress(Exception):
            self._look_for_devices()

    def is_placeable(self, model: str, pool: str) -> bool:
        return (model, pool) not in self._unplaceable

    def tell(self, decision: Decision, start: Start) -> None:
        self._todo.put((decision, start))

    def tell_gateways(self, board: Board) -> None:
        self._todo.put(board)

    def close(self) -> None:
        """Let the thread end, when it has done what it was told."""
        self._todo.put(None)

    def run(self) -> None:
        log = self._open_log()
        looked_s = self._clock()
        while (task := self._todo.get()) is not None:
            try:
                if isinstance(task, Board):
                    self._cluster.publish(task)
                elif log is not None:
                    log.write(*task)
                if self._clock() - looked_s > PLACEMENT_INTERVAL_S:
                    looked_s = self._clock()
                    self._look_for_devices()
            except Exception:  # a full disk or a lost GCS must not end the thread that tells of it
                logger.exception("a decision could not be recorded or told")

    def _open_log(self) -> DecisionLog | None:
        try:
            return DecisionLog(self._folder)
        except OSError:
            logger.exception("decisions will not be recorded in %s", self._folder)
            return None

    def _look_for_devices(self) -> None:
        nodes = self._cluster.nodes()
        self._unplaceable = frozenset(
            (model.name, pool.name)
            for model in self._config.models
            for pool in model.pools
            if not any(pool.fits(resources) for resources in nodes)
        )
