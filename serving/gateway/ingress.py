"""The gateway as Ray Serve's ingress deployment: wires the app to the cluster, the key store and the admin port."""

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ray import serve

from serving.clock import SystemClock
from serving.config import Config
from serving.gateway.app import Gateway
from serving.gateway.auth import REFRESH_S, Authenticator
from serving.gateway.catalog import Catalog
from serving.gateway.inference import TICK_S, Inference
from serving.gateway.membership import MembershipWatcher
from serving.protocol.asgi import AsgiApp, Receive, Scope, Send
from serving.router.directory import Directory
from serving.telemetry import metrics
from serving.telemetry.logs import configure_logs
from serving.tenancy.store import KeyStore

logger = logging.getLogger("ballast.gateway")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What a gateway replica is started with. ``deployments`` lists (model, pool, deployment name) of every pool."""

    config: Config
    app_name: str
    deployments: tuple[tuple[str, str, str], ...]
    secret: bytes


@serve.ingress()
class GatewayIngress:
    """One gateway replica."""

    async def __init__(self, options: GatewayOptions) -> None:
        config = options.config
        configure_logs(config.server.log_level)
        clock = SystemClock()
        self._clock = clock
        self._directory = Directory(options.secret)
        self._authenticator = Authenticator(KeyStore.open(config.server.state_dir), clock.now_s())
        catalog = Catalog(config.models, self._directory)
        self._inference = Inference(config, catalog, self._directory, self._authenticator)
        self._gateway = Gateway(config.limits, catalog, self._inference, self._authenticator, clock)
        self._membership = MembershipWatcher(self._directory, options.app_name, options.deployments)
        self._heart = asyncio.create_task(self._beat())

    def __serve_build_asgi_app__(self) -> AsgiApp:
        return self._handle

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await self._gateway(scope, receive, send)

    async def _beat(self) -> None:
        """What happens twice a second: timeouts and keep-alives, fresh keys, readiness, loop lag."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + min(TICK_S, REFRESH_S)
            await asyncio.sleep(due_s - loop.time())
            metrics.LOOP_LAG.observe(max(0.0, loop.time() - due_s))
            self._inference.tick(time.monotonic())
            self._authenticator.refresh(self._clock.now_s())
            self._gateway.is_ready = any(replica.is_ready for replica in self._directory.all())

    async def __del__(self) -> None:
        self._heart.cancel()
        self._membership.stop()
        await self._directory.close()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
