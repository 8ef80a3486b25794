"""What a replica is, wherever it runs: an engine, the server in front of it, and the watch over both.

``ReplicaHost`` is all of that in this process: for GPU engines, Ray's own worker process. ``ForkedHost`` stands for one
in a process forked from the node's zygote: CPU engines, whose imports would be most of their start.
"""

import asyncio
import logging
import os
import pickle
import signal
import socket
import sys
import traceback
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import orjson
import uvloop

from serving.engine.base import Engine
from serving.engine.preload import MODULES
from serving.lifecycle import zygote
from serving.replica import progress
from serving.replica.options import ReplicaOptions
from serving.replica.server import ReplicaServer
from serving.replica.watchdog import Watchdog
from serving.telemetry.logs import configure_logs

logger = logging.getLogger("ballast.replica")

WATCH_INTERVAL_S = 0.1
#: An engine without work is asked for an answer this often, or a hang would be found by the next request.
ASK_INTERVAL_S = 5.0
#: A dead engine's streams get this long to be told; then the process ends, and Ray Serve starts another.
DEATH_GRACE_S = 0.5
#: What a zygote may take until it has forked. It may have to import first, on a machine where others do too.
ZYGOTE_PATIENCE_S = 60.0
RETRY_S = 0.05
STOP_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Served:
    """A replica that is ready: where it listens, the longest prompt plus output in tokens, and its process."""

    address: str
    max_model_len: int
    pid: int


class Host(Protocol):
    """A replica's engine and server, as Ray Serve's actor sees them."""

    async def start(self) -> Served:
        """Load the model and listen. Raises on anything that makes serving impossible."""

    @property
    def dead(self) -> bool:
        """True once it can never answer again."""

    async def watch(self) -> None:
        """Return when it has died and its clients have been told."""

    async def stop(self) -> None:
        """Finish or fail the open streams, release the engine. Also after a start that failed."""


# ----------------------------------------------------------------------------------------------------- in this process


class ReplicaHost:
    """The engine and the server in this process."""

    def __init__(self, options: ReplicaOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._engine: Engine | None = None
        self._server: ReplicaServer | None = None
        self._is_stopping = False

    async def start(self) -> Served:
        self._engine = build_engine(self._options)
        progress.write_step(progress.ENGINE)
        await self._engine.start()
        self._server = ReplicaServer(self._engine, self._name, self._options.secret)
        address = await self._listen(self._server)
        progress.write_step(progress.READY)
        return Served(address, self._engine.max_model_len, os.getpid())

    async def _listen(self, server: ReplicaServer) -> str:
        if self._options.listen_host is not None:
            port = await server.listen_tcp(self._options.listen_host)
            return f"tcp:{self._options.listen_host}:{port}"
        path = Path(self._options.runtime_dir) / f"{self._name}.sock"
        await server.listen_unix(path)
        return f"unix:{path}"

    @property
    def dead(self) -> bool:
        return self._engine is not None and self._engine.dead

    async def watch(self) -> None:
        """Return when the engine is dead or hangs."""
        assert self._engine is not None, "start() has not finished"
        assert self._server is not None, "start() has not finished"
        watchdog = Watchdog(self._options.watchdog_s)
        asking = asyncio.create_task(self._keep_asking(watchdog))
        try:
            await self._watch(watchdog)
        finally:
            asking.cancel()

    async def _keep_asking(self, watchdog: Watchdog) -> None:
        assert self._engine is not None
        while True:
            await asyncio.sleep(ASK_INTERVAL_S)
            watchdog.is_asked = True
            try:
                await self._engine.answer()
            finally:  # an engine that raises, as one that is being stopped, does not hang
                watchdog.is_asked = False

    async def _watch(self, watchdog: Watchdog) -> None:
        assert self._engine is not None
        assert self._server is not None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if self._engine.dead and not self._is_stopping:
                logger.error("the engine of replica %s died; the replica ends with it", self._name)
                await self._server.drain(DEATH_GRACE_S)
                await self._server.close()
                await self._engine.stop()
                return
            if watchdog.is_hung(self._engine.load(), loop.time()):
                logger.error(
                    "the engine of replica %s took no step for %g s; the replica ends", self._name, watchdog.limit_s
                )
                await self._server.abandon("the engine hangs")
                return  # the kernel kills the engine's processes with ours; asking them to end would hang too

    async def stop(self) -> None:
        self._is_stopping = True
        if self._server is not None:
            await self._server.drain(self._options.drain_s)
            await self._server.close()
        if self._engine is not None:
            await self._engine.stop()


_ENGINES = {"vllm": "serving.engine.vllm_engine:build", "scripted": "serving.engine.scripted:build"}


def build_engine(options: ReplicaOptions) -> Engine:
    """The engine that ``options`` name: a known one, or ``module:function`` of one's own. Imported here, in the
    replica only.
    """
    module, _, function = _ENGINES.get(options.engine, options.engine).partition(":")
    engine: Engine = getattr(import_module(module), function)(options)
    return engine


def end_process() -> None:
    """End this process at once, as one that has failed."""
    sys.stderr.flush()
    os._exit(1)


# -------------------------------------------------------------------------------------------------- in a forked process

_STOP = b"stop\n"


class ForkedHost:
    """``ReplicaHost`` in a process of its own, seen from the actor. The process ends with the actor, and tells of its
    own end by that of the control socket.
    """

    def __init__(self, options: ReplicaOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._child: zygote.Child | None = None
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self._end: asyncio.Task[bytes] | None = None

    async def start(self) -> Served:
        """Raises RuntimeError with what the other process says; the whole story is in its output, which is ours."""
        job = zygote.Job.here("serving.replica.host:run", pickle.dumps((self._options, self._name)), "ballast-replica")
        if not await self._fork(job):
            logger.warning("replica %s could not be forked; it imports its engine itself", self._name)
            await self._talk_to(zygote.run_fresh(job))
            await self._reader.readline()
        answer = await self._reader.readline()
        if not answer:
            raise RuntimeError("the replica's process ended while it started")
        told = orjson.loads(answer)
        if "error" in told:
            raise RuntimeError(told["error"])
        self._end = asyncio.create_task(self._reader.read())
        return Served(**told)

    async def _fork(self, job: zygote.Job) -> bool:
        """Whether the node's zygote, started now if there is none, has forked a process for ``job``."""
        assert self._options.zygote_path is not None, "this replica is to be forked"
        try:
            async with asyncio.timeout(ZYGOTE_PATIENCE_S):
                await self._talk_to(await _ask_zygote(self._options.zygote_path, job))
                return bool(await self._reader.readline())
        except (zygote.ZygoteError, TimeoutError) as error:
            logger.warning("no zygote serves replica %s: %s", self._name, str(error) or "it took too long")
            return False

    async def _talk_to(self, child: zygote.Child) -> None:
        self._release()
        self._child = child
        self._reader, self._writer = await asyncio.open_unix_connection(sock=child.control)

    @property
    def dead(self) -> bool:
        return self._end is not None and self._end.done()

    async def watch(self) -> None:
        """Return when the process has ended."""
        assert self._end is not None, "start() has not finished"
        await asyncio.wait((self._end,))

    async def stop(self) -> None:
        """A process that is still starting is killed."""
        if self._writer is not None and self._end is not None:
            self._writer.write(_STOP)
            await asyncio.wait((self._end,), timeout=self._options.drain_s + STOP_MARGIN_S)
            if not self.dead:
                logger.warning("replica %s did not stop in time and is killed", self._name)
        self._release()

    def _release(self) -> None:
        """Let go of the process: if it still runs, this kills it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._child is not None:
            self._child.close()
            self._child = None


async def _ask_zygote(socket_path: Path, job: zygote.Job) -> zygote.Child:
    """Raises ZygoteError."""
    try:
        return zygote.fork(socket_path, job)
    except zygote.ZygoteError as error:
        logger.warning("a zygote is started, for there is none: %s", error)
    zygote.start(socket_path, os.getppid(), MODULES)
    deadline_s = asyncio.get_running_loop().time() + zygote.START_GRACE_S
    while True:
        try:
            return zygote.fork(socket_path, job)
        except zygote.ZygoteError:
            if asyncio.get_running_loop().time() > deadline_s:
                raise
            await asyncio.sleep(RETRY_S)


def run(payload: bytes, control: socket.socket) -> None:
    """The job of the forked process."""
    options, name = pickle.loads(payload)  # noqa: S301 - our own actor wrote it
    assert isinstance(options, ReplicaOptions)
    configure_logs(options.log_level, Path(options.log_path))
    uvloop.run(_serve(ReplicaHost(options, name), control))


async def _serve(host: ReplicaHost, control: socket.socket) -> None:
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)
    os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
    reader, writer = await asyncio.open_unix_connection(sock=control)
    try:
        told = asdict(await host.start())
    except Exception as error:  # noqa: BLE001 - the top of a process, whose actor is told
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"}
    writer.write(orjson.dumps(told) + b"\n")
    await writer.drain()
    if "error" not in told:
        watch = asyncio.create_task(host.watch())
        asked: list[asyncio.Task[Any]] = [
            asyncio.create_task(reader.readline()),
            asyncio.create_task(told_to_end.wait()),
        ]
        await asyncio.wait([watch, *asked], return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            end_process()
    await host.stop()


def _leave_signals_to_the_parent() -> None:
    """An engine that is forked shares the pipe by which its parent's loop hears of signals."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
