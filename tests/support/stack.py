"""The whole request path in one process and one event loop: engine, replica, link, gateway and a real HTTP server.

No Ray and no model. What Ray Serve does in production is done here by hand: membership is a list, and ``Stack.tick``
stands for the twice-a-second beat, so that a test decides what time it is.
"""

import asyncio
import json
import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn

from serving.clock import SystemClock
from serving.config.config import Config
from serving.edge.middleware import EdgeMiddleware
from serving.engine.base import Engine
from serving.engine.scripted import Script, ScriptedEngine
from serving.gateway.app import Gateway
from serving.gateway.auth import Authenticator
from serving.gateway.catalog import Catalog
from serving.gateway.dispatcher import Coming, nobody_knows
from serving.gateway.inference import Inference
from serving.protocol.membership import ReplicaAddress
from serving.replica.server import ReplicaServer
from serving.router.directory import Directory
from serving.telemetry.logs import JsonFormatter
from serving.tenancy.store import KeyStore
from tests.support.wire import GUARD_S, Wire

SECRET = b"a cluster's secret of some length"
MODEL, ALIAS, POOL, SPARE = "demo", "gpt-alias", "cpu", "spare"
CHAT = "/v1/chat/completions"

Json = dict[str, Any]


async def until(condition: Callable[[], object], guard_s: float = GUARD_S) -> None:
    """Let the event loop run until ``condition`` holds."""
    async with asyncio.timeout(guard_s):
        while not condition():  # noqa: ASYNC110  (conditions of code that announces nothing)
            await asyncio.sleep(0.001)


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def chat(prompt: str = "hello there", **fields: object) -> Json:
    """The body of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


def chat_bytes(prompt: str = "hello there", **fields: object) -> bytes:
    return json.dumps(chat(prompt, **fields)).encode()


def config_of(
    state_dir: Path,
    limits: Mapping[str, object] | None = None,
    server: Mapping[str, object] | None = None,
    models: Sequence[Mapping[str, object]] = (),
    slo: Mapping[str, object] | None = None,
    fallback: Mapping[str, object] | None = None,
) -> Config:
    """``fallback``: bounds of a second pool of the first model, `SPARE`, which stands in for the other."""
    pool = {"name": POOL, "device": "cpu", "cpus_per_replica": 1.0, "usd_per_hour": 0.1}
    spares = [] if fallback is None else [{**pool, "name": SPARE, "fallback": dict(fallback)}]
    model = {"name": MODEL, "aliases": [ALIAS], "source": "owner/name", "pools": [pool, *spares], "slo": slo or {}}
    others = [{"source": "owner/other", "pools": [pool], **other} for other in models]
    data = {
        "server": {"state_dir": str(state_dir), **(server or {})},
        "limits": dict(limits or {}),
        "models": [model, *others],
    }
    return Config.model_validate(data, context={"base_dir": state_dir})


class LogLines(logging.Handler):
    """Every line of the ``ballast`` loggers, formatted as the server writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def write(self, entry: Json) -> None:
        """Stands for ``RequestLog``."""
        self.lines.append(json.dumps({"time": "now", "level": "info", "logger": "ballast.request", **entry}))

    def requests(self) -> list[Json]:
        """The request lines, oldest first."""
        return [entry for entry in map(json.loads, self.lines) if entry["logger"] == "ballast.request"]


@dataclass
class Stack:
    """What ``start_stack`` started. ``engines`` and ``replicas`` are in step."""

    folder: Path
    config: Config
    engines: list[Any]
    store: KeyStore
    coming: Coming = nobody_knows
    replicas: list[ReplicaServer] = field(default_factory=list)
    logs: LogLines = field(default_factory=LogLines)
    port: int = 0
    pool_of: dict[str, str] = field(default_factory=dict)
    """By name of a replica."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self.authenticator = Authenticator(self.store, time.time())
        self.directory = Directory(SECRET, {(MODEL, SPARE)})
        catalog = Catalog(self.config.models, self.directory)
        self.inference = Inference(
            self.config, catalog, self.directory, self.authenticator, self.folder / "deaths", self.coming
        )
        self.gateway = Gateway(
            self.config.limits, catalog, self.inference, self.authenticator, SystemClock(), self.logs
        )
        for engine in self.engines:
            await self.add_replica(engine)
        self.set_members()
        await self.until_ready(len(self.engines))
        logger = logging.getLogger("ballast")
        logger.addHandler(self.logs)
        self._level = logger.level
        logger.setLevel(logging.INFO)
        await self._serve()
        self.client = httpx.AsyncClient(base_url=self.url, timeout=GUARD_S, trust_env=False)
        self._beat = asyncio.create_task(self._beat_forever())
        return self

    async def _beat_forever(self) -> None:
        """The gateway's beat at real time, many times faster; ``tick`` is for the times that a test makes up."""
        while True:
            self.inference.tick(time.monotonic())
            await asyncio.sleep(0.01)

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        for server in self._server.servers:
            server.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        await self.until(lambda: not self._server.server_state.tasks)
        self._beat.cancel()
        await self.directory.close()
        for replica in self.replicas:
            await replica.drain(0)
            await replica.close()
        self.store.close()
        logger = logging.getLogger("ballast")
        logger.removeHandler(self.logs)
        logger.setLevel(self._level)

    async def _serve(self) -> None:
        """Uvicorn with Ray Serve's settings and small socket buffers, so that a slow reader is noticed early.

        Its own loop, which looks every 0.1 s whether it should stop, is left out: it would cost each test that much.
        """
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            EdgeMiddleware(self.gateway), log_config=None, access_log=False, lifespan="off", timeout_keep_alive=75,
            backlog=4096, ws="websockets-sansio",
        )  # fmt: skip
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup([listener])

    async def add_replica(self, engine: Engine, pool: str = POOL) -> ReplicaServer:
        replica = ReplicaServer(engine, f"r{len(self.replicas)}", SECRET)
        self.pool_of[replica.name] = pool
        await replica.listen_unix(self.folder / f"{replica.name}.sock")
        self.replicas.append(replica)
        return replica

    def set_members(self, names: Sequence[str] | None = None) -> None:
        """What Ray Serve's long poll would say; None: every replica there is."""
        members = [self.address(replica) for replica in self.replicas if names is None or replica.name in names]
        for pool in (POOL, SPARE):
            self.directory.update(MODEL, pool, [member for member in members if member.pool == pool])

    def address(self, replica: ReplicaServer) -> ReplicaAddress:
        return ReplicaAddress(
            replica=replica.name,
            model=MODEL,
            pool=self.pool_of[replica.name],
            address=f"unix:{self.folder / replica.name}.sock",
            version="v1",
            max_model_len=replica.engine.max_model_len,
            pid=os.getpid(),
        )

    async def until_ready(self, num_replicas: int) -> None:
        await until(lambda: sum(replica.is_ready for replica in self.directory.all()) == num_replicas)
        self.gateway.is_ready = num_replicas > 0

    def tick(self, seconds_later: float = 0.0) -> None:
        """The beat, as if it were ``seconds_later``."""
        self.inference.tick(time.monotonic() + seconds_later)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the event loop run and the beat go on until ``condition`` holds."""

        def beaten() -> object:
            self.tick()
            return condition()

        await until(beaten)

    async def wire(self, **options: Any) -> Wire:
        return await Wire.connect(self.port, **options)

    async def open_chat(self, prompt: str = "hello there", **fields: object) -> Wire:
        """A streamed chat request whose answer is still to be read."""
        wire = await self.wire()
        await wire.post(CHAT, chat_bytes(prompt, stream=True, **fields))
        return wire

    async def request_line(self, **expected: object) -> Json:
        """The first request line with these values; it may still have to be written."""

        def found() -> list[Json]:
            return [line for line in self.logs.requests() if expected.items() <= line.items()]

        await self.until(found)
        return found()[0]


def start_stack(
    folder: Path,
    *engines: Engine,
    limits: Mapping[str, object] | None = None,
    server: Mapping[str, object] | None = None,
    models: Sequence[Mapping[str, object]] = (),
    slo: Mapping[str, object] | None = None,
    fallback: Mapping[str, object] | None = None,
    coming: Coming = nobody_knows,
) -> Stack:
    """A stack over ``engines``, one scripted one if none is given; enter it to start it."""
    config = config_of(folder / "state", limits, server, models, slo, fallback)
    store = KeyStore.open(folder / "state")
    return Stack(folder, config, list(engines) or [ScriptedEngine(Script())], store, coming)
