"""The Ray Serve deployment of a pool: each replica owns one engine and serves it privately to the gateways."""

import asyncio
import logging
from dataclasses import asdict
from pathlib import Path

from ray import serve

from serving.edge.side_door import close_side_door
from serving.protocol.membership import ReplicaAddress
from serving.replica import progress
from serving.replica.host import ForkedHost, Host, ReplicaHost, end_process
from serving.replica.options import ReplicaOptions
from serving.telemetry.logs import configure_logs

logger = logging.getLogger("ballast.replica")


class PoolReplica:
    """One replica of a pool. Ray Serve constructs it, asks for its address, checks its health and stops it."""

    async def __init__(self, options: ReplicaOptions) -> None:  # type: ignore[misc]  # Ray Serve awaits constructors
        close_side_door()
        configure_logs(options.log_level, Path(options.log_path))
        self._options = options
        context = serve.get_replica_context()
        self._name = context.replica_id.unique_id
        steps = progress.report_to(Path(options.runtime_dir), context.deployment, self._name)
        progress.write_step(progress.PROCESS, progress.process_began_s())
        progress.write_step(progress.IMPORTS)
        self._is_stopping = False
        self._host: Host = (ForkedHost if options.is_forked else ReplicaHost)(options, self._name)
        self._served = await self._host.start()
        self._start_steps = progress.split(progress.read_steps(steps))
        self._watch = asyncio.create_task(self._watch_host())
        words = {"start_s": self._start_steps}
        logger.info("replica %s of %s/%s is ready", self._name, options.model, options.pool, extra=words)

    def record_replica_metadata(self) -> dict[str, object]:
        """Told to every gateway by Ray Serve's long poll, once, when this replica becomes ready."""
        options, served = self._options, self._served
        address = ReplicaAddress(
            replica=self._name,
            model=options.model,
            pool=options.pool,
            address=served.address,
            version=options.version,
            max_model_len=served.max_model_len,
            pid=served.pid,
            start_steps=self._start_steps,
            model_version=options.model_version,
        )
        return asdict(address)

    def check_health(self) -> None:
        if self._host.dead:
            raise RuntimeError("the engine is dead")

    async def __del__(self) -> None:
        """Ray Serve's way to stop a replica, also one whose start failed."""
        self._is_stopping = True
        if hasattr(self, "_host"):
            await self._host.stop()

    async def _watch_host(self) -> None:
        """End the process with what it is there for; Ray Serve starts another."""
        await self._host.watch()
        if not self._is_stopping:
            end_process()
