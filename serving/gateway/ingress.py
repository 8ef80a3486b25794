"""The gateway as Ray Serve's ingress deployment: wires the app to the cluster, the key store and the admin port."""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.clock import SystemClock
from serving.config import Config
from serving.edge.local_socket import LocalSocket
from serving.edge.middleware import EdgeMiddleware
from serving.edge.side_door import close_side_door
from serving.errors import StateError
from serving.gateway import deaths, termination
from serving.gateway.admin import AdminServer
from serving.gateway.app import Gateway
from serving.gateway.auth import REFRESH_S, STORE_BUSY_TIMEOUT_S, Authenticator
from serving.gateway.catalog import Catalog
from serving.gateway.fleet import FleetBoard
from serving.gateway.inference import Inference
from serving.gateway.membership import MembershipWatcher
from serving.protocol.asgi import AsgiApp, Receive, Scope, Send
from serving.protocol.stats import Stats
from serving.router.directory import TICK_S, Directory
from serving.router.replica import Replica
from serving.telemetry import metrics
from serving.telemetry.logs import RequestLog, configure_logs
from serving.tenancy.store import KeyStore

logger = logging.getLogger("ballast.gateway")

SAVE_LAST_USED_S = 60.0
#: HAProxy asks every five seconds how a gateway is, and again after a quarter of one before it passes it over.
HAPROXY_NOTICE_S = 6.0
#: Allocations between two collections of the youngest objects; Python's 700 is less than one engine step makes.
GC_YOUNG_OBJECTS = 20_000


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What a gateway replica is started with. ``deployments`` lists (model, pool, deployment name) of every pool;
    ``runtime_dir`` is a folder that all gateways share.
    """

    config: Config
    app_name: str
    deployments: tuple[tuple[str, str, str], ...]
    secret: bytes
    runtime_dir: Path


@serve.ingress()
class GatewayIngress:
    """One gateway replica."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits constructors
        self, options: GatewayOptions, pools: Sequence[DeploymentHandle]
    ) -> None:
        """``pools`` makes Ray Serve deploy them with the gateway; no request goes through their handles."""
        config = options.config
        close_side_door()
        configure_logs(config.server.log_level, config.server.log_path)
        self._clock = SystemClock()
        self._state_dir = config.server.state_dir
        store = KeyStore.open(self._state_dir, busy_timeout_s=STORE_BUSY_TIMEOUT_S)
        self._authenticator = Authenticator(store, self._clock.now_s())
        fallback_pools = {
            (model.name, pool.name) for model in config.models for pool in model.pools if pool.fallback is not None
        }
        self._directory = Directory(options.secret, fallback_pools)
        self._pools = options.deployments
        catalog = Catalog(config.models, self._directory)
        self._fleet = FleetBoard()
        self._grace_s = config.server.shutdown_grace_s
        self._is_leaving = False
        self._is_stopping = False
        self._inference = Inference(
            config,
            catalog,
            self._directory,
            self._authenticator,
            options.runtime_dir / deaths.FILE_NAME,
            self._coming_s,
        )
        self._gateway = Gateway(
            config.limits,
            catalog,
            self._inference,
            self._authenticator,
            self._clock,
            RequestLog(config.server.log_path),
            self._fleet.usd_per_token,
        )
        EdgeMiddleware.gateway = self._gateway
        self._local_socket = LocalSocket.beside_haproxy(
            EdgeMiddleware(self._gateway), serve.get_replica_context().replica_id.unique_id
        )
        if self._local_socket is not None:
            self._local_socket.start()
        self._membership = MembershipWatcher(self._directory, options.app_name, options.deployments)
        self._admin = AdminServer(config.server.admin_port, self._directory, self._status)
        self._admin.start()
        beats = (self._beat(), self._save_last_used(), self._fleet.follow())
        self._tasks = [asyncio.create_task(beat) for beat in beats]
        self._leaving = asyncio.create_task(self._leave_when_told())
        # What is alive now (Ray, mostly) stays alive: looking through it again and again would stall streams.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_YOUNG_OBJECTS)

    def __serve_build_asgi_app__(self) -> AsgiApp:
        return _WithLifespan(self._gateway)

    async def _beat(self) -> None:
        """What happens twice a second: timeouts and keep-alives, fresh keys, readiness, loop lag."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + min(TICK_S, REFRESH_S)
            await asyncio.sleep(due_s - loop.time())
            lag_s = max(0.0, loop.time() - due_s)
            metrics.LOOP_LAG.observe(lag_s)
            self._inference.tick(time.monotonic(), lag_s)
            self._directory.tick(loop.time())
            self._authenticator.refresh(self._clock.now_s())
            replicas = self._directory.all()
            self._gateway.is_ready = any(replica.is_ready for replica in replicas) and not self._is_leaving
            self._count_replicas(replicas)

    def _coming_s(self, model: str, allows_fallback: bool) -> float | None:
        """When the server stops its replicas go with it: nobody waits for one then."""
        return None if self._is_stopping else self._fleet.coming_s(model, allows_fallback)

    def record_autoscaling_stats(self) -> Stats:
        """Asked for by Ray Serve about once a second, for the autoscaler in its controller."""
        return self._inference.stats()

    def _count_replicas(self, replicas: list[Replica]) -> None:
        for model, pool, _ in self._pools:
            own = [replica for replica in replicas if (replica.address.model, replica.address.pool) == (model, pool)]
            num_ready = sum(replica.is_ready for replica in own)
            metrics.REPLICAS.labels(model, pool, "ready").set(num_ready)
            metrics.REPLICAS.labels(model, pool, "not_ready").set(len(own) - num_ready)
            for step, seconds in own[-1].address.start_steps.items() if own else ():
                metrics.REPLICA_START.labels(model, pool, step).set(seconds)

    async def _save_last_used(self) -> None:
        while True:
            await asyncio.sleep(SAVE_LAST_USED_S)
            if used := self._authenticator.take_last_used():
                try:
                    await asyncio.to_thread(_touch, self._state_dir, used)
                except StateError as error:
                    logger.warning("when keys were last used could not be saved and will be tried again: %s", error)
                    self._authenticator.put_back_last_used(used)

    def _status(self) -> dict[str, object]:
        """The body of /admin/status."""
        now_s = asyncio.get_running_loop().time()
        replicas = [
            {
                **asdict(replica.address),
                "ready": replica.is_ready,
                "streams": replica.link.num_streams,
                "load": replica.load,
                "load_age_s": round(now_s - replica.load_at_s, 3) if replica.load else None,
            }
            for replica in self._directory.all()
        ]
        error = self._authenticator.store_error
        return {
            "gateway_pid": os.getpid(),
            "ready": self._gateway.is_ready,
            "in_flight": self._inference.num_in_flight,
            "keys_required": self._authenticator.key_required,
            "key_store_error": str(error) if error else None,
            "replicas": replicas,
            "fleet": self._fleet.as_status(),
        }

    async def __del__(self) -> None:
        """Ray Serve's way to stop a gateway, two seconds after it has told HAProxy. Ray sees none of our requests, so
        it is here that they are waited for.
        """
        if not hasattr(self, "_tasks"):  # the constructor failed
            return
        self._leaving.cancel()
        await self._stop()

    async def _leave_when_told(self) -> None:
        """At a SIGTERM: serve until HAProxy brings nothing more, let what is under way end, and end the process. Ray
        Serve starts another gateway.
        """
        await termination.told()
        logger.info("SIGTERM: this gateway passes on what is new, and ends when its requests have", extra=self._count())
        self._is_leaving = EdgeMiddleware.is_leaving = True
        self._gateway.is_ready = False
        await self._admin.close()
        await asyncio.sleep(HAPROXY_NOTICE_S)
        await self._stop()
        logger.info("SIGTERM: this gateway has ended", extra=self._count())
        os._exit(0)

    def _count(self) -> dict[str, int]:
        return {"in_flight": self._inference.num_in_flight}

    async def _stop(self) -> None:
        """Take nothing more, give what is under way its time, and let go of everything."""
        self._is_leaving = self._is_stopping = True
        if self._local_socket is not None:
            if not await self._local_socket.drain(self._grace_s):
                self._inference.end_all()
            await self._local_socket.close()
        for task in self._tasks:
            task.cancel()
        self._membership.stop()
        await self._admin.close()
        await self._directory.close()


def _touch(state_dir: Path, used: dict[str, float]) -> None:
    """Write when keys were last used, on a connection of its own: the event loop never waits for a disk."""
    store = KeyStore(state_dir, 5.0)
    try:
        store.touch(used)
    finally:
        store.close()


class _WithLifespan:
    """The gateway, answering ASGI's start-up and shutdown messages, which Ray Serve insists on sending."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for _ in ("startup", "shutdown"):
            await send({"type": f"{(await receive())['type']}.complete"})
