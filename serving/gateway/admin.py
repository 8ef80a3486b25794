"""The operator's listener on loopback: ``/metrics`` for Prometheus and ``/admin/status`` for people and scripts.

Every gateway tries to hold the port and one succeeds; when that one ends another takes over. Whichever answers, the
counts are those of all gateways (one shared folder), and the engines' own series are fetched from every replica.
"""

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import orjson
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.errors import BallastError
from serving.gateway.host import is_local_name
from serving.protocol.asgi import Receive, Scope, Send
from serving.protocol.frames import OpenHead
from serving.router.directory import Directory
from serving.router.link import ReplicaStream, StreamFailed
from serving.router.replica import Replica

logger = logging.getLogger("ballast.admin")

RETRY_BIND_S = 1.0
SCRAPE_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 1.0
_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(.*)\})? (.+)$")


class AdminServer:
    """Serves the admin port for as long as this gateway holds it."""

    def __init__(self, port: int, directory: Directory, status: Callable[[], dict[str, object]]) -> None:
        self._port = port
        self._directory = directory
        self._status = status
        self._task: asyncio.Task[None] | None = None
        self._server: uvicorn.Server | None = None
        self._is_closing = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._hold_port())

    async def close(self) -> None:
        """Leave the port to another gateway."""
        self._is_closing = True
        if self._task is None:
            return
        if self._server is not None:
            self._server.should_exit = True
            await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)
        self._task.cancel()

    async def _hold_port(self) -> None:
        config = uvicorn.Config(self, log_config=None, access_log=False, lifespan="off")
        while not self._is_closing:
            listener = _bind(self._port)
            if listener is not None:
                self._server = uvicorn.Server(config)
                await self._server.serve(sockets=[listener])
            await asyncio.sleep(RETRY_BIND_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not is_local_name(scope["headers"]):
            await _respond(send, 403, b"application/json", b'{"error":"use the name localhost or 127.0.0.1"}')
        elif path == "/metrics":
            body = await asyncio.to_thread(own_metrics)
            body += await replica_metrics(self._directory.all())
            await _respond(send, 200, b"text/plain; version=0.0.4; charset=utf-8", body)
        elif path == "/admin/status":
            await _respond(send, 200, b"application/json", orjson.dumps(self._status()))
        else:
            await _respond(send, 404, b"application/json", b'{"error":"the admin port has /metrics and /admin/status"}')


def own_metrics() -> bytes:
    """All gateways' metrics in Prometheus's text format; gauges of gateways that are gone are dropped."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    for pid in _dead_pids(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _dead_pids(folder: Path) -> set[int]:
    pids = {int(path.stem.rsplit("_", 1)[1]) for path in folder.glob("gauge_live*_*.db")}
    return {pid for pid in pids if not Path(f"/proc/{pid}").exists()}


async def replica_metrics(replicas: Iterable[Replica]) -> bytes:
    """Every replica's own series (vLLM's names, kept verbatim) with ``pool`` and ``replica`` labels added."""
    ready = [replica for replica in replicas if replica.is_ready]
    texts = await asyncio.gather(*(_fetch_metrics(replica) for replica in ready))
    families: dict[bytes, list[bytes]] = {}
    for replica, text in zip(ready, texts, strict=True):
        labels = f'pool="{replica.address.pool}",replica="{replica.address.replica}"'.encode()
        _merge(families, text, labels)
    return b"".join(line + b"\n" for lines in families.values() for line in lines)


async def _fetch_metrics(replica: Replica) -> bytes:
    head: OpenHead = {
        "method": "GET", "path": "/metrics", "request_id": "metrics", "model": "",
        "created": 0, "continuable": False, "resume": [],
    }  # fmt: skip
    stream: ReplicaStream | None = None
    try:
        stream = replica.link.open(head, b"", buffer_bytes=2**22)
        async with asyncio.timeout(SCRAPE_TIMEOUT_S):
            return await _read_answer(stream)
    except (BallastError, StreamFailed, TimeoutError) as error:
        logger.warning("replica %s gives no metrics: %s", replica.address.replica, repr(error))
        return b""
    finally:
        if stream is not None:
            await stream.finish(timeout_s=0)


async def _read_answer(stream: ReplicaStream) -> bytes:
    """The whole body of a 200; of anything else nothing."""
    if (await stream.head())["status"] != 200:
        return b""
    parts = []
    while part := await stream.read():
        parts.append(part)
    return b"".join(parts)


def _merge(families: dict[bytes, list[bytes]], text: bytes, labels: bytes) -> None:
    """Add one replica's text: HELP and TYPE once per family, samples with ``labels`` prepended to theirs."""
    family = b""
    for line in text.splitlines():
        if line.startswith((b"# HELP ", b"# TYPE ")):
            family = line.split(b" ", 3)[2]
            lines = families.setdefault(family, [])
            if line not in lines[:2]:
                lines.append(line)
        elif match := _SAMPLE.match(line):
            name, _, own, value = match.groups()
            joined = labels + b"," + own if own else labels
            families.setdefault(family, []).append(name + b"{" + joined + b"} " + value)


def _bind(port: int) -> socket.socket | None:
    """A listening socket on loopback, or None while another gateway has the port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()  # two may bind before either listens
    except OSError:
        listener.close()
        return None
    return listener


async def _respond(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
