"""The Ray Serve deployment of a pool: each replica owns one engine and serves it privately to the gateways."""

import asyncio
import importlib
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

from ray import serve

from serving.edge.side_door import close_side_door
from serving.engine.base import Engine
from serving.protocol.membership import ReplicaAddress
from serving.replica import progress
from serving.replica.options import ReplicaOptions
from serving.replica.server import ReplicaServer
from serving.replica.watchdog import Watchdog
from serving.telemetry.logs import configure_logs

logger = logging.getLogger("ballast.replica")

WATCH_INTERVAL_S = 0.1
#: A dead engine's streams get this long to be told; then the process ends, and Ray Serve starts another.
DEATH_GRACE_S = 0.5


class PoolReplica:
    """One replica of a pool. Ray Serve constructs it, asks for its address, checks its health and stops it."""

    async def __init__(self, options: ReplicaOptions) -> None:  # type: ignore[misc]  # Ray Serve awaits constructors
        close_side_door()
        configure_logs(options.log_level, Path(options.log_path))
        self._options = options
        context = serve.get_replica_context()
        self._name = context.replica_id.unique_id
        progress.report_to(Path(options.runtime_dir), context.deployment, self._name)
        progress.write_step("importing the engine")
        self._engine = build_engine(options)
        self._is_stopping = False
        progress.write_step("starting the engine's processes")
        await self._engine.start()
        progress.write_step("ready")
        self._server = ReplicaServer(self._engine, self._name, options.secret)
        self._address = await self._listen()
        self._watch = asyncio.create_task(self._watch_engine())
        logger.info("replica %s of %s/%s is ready", self._name, options.model, options.pool)

    async def _listen(self) -> str:
        if self._options.listen_host is not None:
            port = await self._server.listen_tcp(self._options.listen_host)
            return f"tcp:{self._options.listen_host}:{port}"
        path = Path(self._options.runtime_dir) / f"{self._name}.sock"
        await self._server.listen_unix(path)
        return f"unix:{path}"

    def record_replica_metadata(self) -> dict[str, object]:
        """Told to every gateway by Ray Serve's long poll, once, when this replica becomes ready."""
        options = self._options
        address = ReplicaAddress(
            replica=self._name,
            model=options.model,
            pool=options.pool,
            address=self._address,
            version=options.version,
            max_model_len=self._engine.max_model_len,
            pid=os.getpid(),
        )
        return asdict(address)

    def check_health(self) -> None:
        if self._engine.dead:
            raise RuntimeError("the engine is dead")

    async def __del__(self) -> None:
        """Ray Serve's way to stop a replica, also one whose start failed: finish or fail the open streams, release
        the engine.
        """
        self._is_stopping = True
        if hasattr(self, "_server"):
            await self._server.drain(self._options.drain_s)
            await self._server.close()
        if hasattr(self, "_engine"):
            await self._engine.stop()

    async def _watch_engine(self) -> None:
        """End the process with its engine: when that is dead, and when it hangs."""
        watchdog, loop = Watchdog(self._options.watchdog_s), asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if self._engine.dead and not self._is_stopping:
                logger.error("the engine of replica %s died; the replica ends with it", self._name)
                await self._server.drain(DEATH_GRACE_S)
                await self._server.close()
                await self._engine.stop()
                _exit()
            if watchdog.is_hung(self._engine.load(), loop.time()):
                logger.error(
                    "the engine of replica %s took no step for %g s; the replica ends", self._name, watchdog.limit_s
                )
                await self._server.abandon("the engine hangs")
                _exit()  # the kernel kills the engine's processes with it; asking them to end would hang too


def _exit() -> None:
    sys.stderr.flush()
    os._exit(1)


_ENGINES = {"vllm": "serving.engine.vllm_engine:build", "scripted": "serving.engine.scripted:build"}


def build_engine(options: ReplicaOptions) -> Engine:
    """The engine that ``options`` name: a known one, or ``module:function`` of one's own. Imported here, in the
    replica only.
    """
    module, _, function = _ENGINES.get(options.engine, options.engine).partition(":")
    engine: Engine = getattr(importlib.import_module(module), function)(options)
    return engine
