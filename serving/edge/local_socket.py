"""A gateway's Unix socket, on which the HAProxy of its own node brings it requests.

A chunk of an answer is a few hundred bytes: most of what it costs to hand it over is TCP, even on loopback. Ray Serve
knows only TCP, so its port stays: for health checks, for draining, and for the HAProxies of other nodes.
``serving/edge/haproxy.py`` points HAProxy here.
"""

import asyncio
import os
import socket
from pathlib import Path

import uvicorn

from serving.edge.haproxy import socket_of
from serving.protocol.asgi import AsgiApp

#: HAProxy keeps an unused connection for at most ten seconds; who closes first must not be us.
KEEP_ALIVE_S = 60
#: What an answer that has run out of time gets to say so.
CLOSE_TIMEOUT_S = 1.0


class LocalSocket:
    """An HTTP server over ``app`` on a Unix socket that only this user may open."""

    def __init__(self, app: AsgiApp, path: Path) -> None:
        self._path = path
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                timeout_keep_alive=KEEP_ALIVE_S,
                proxy_headers=False,
                access_log=False,
                log_level=None,
                log_config=None,
            )
        )
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def beside_haproxy(cls, app: AsgiApp, server_name: str) -> "LocalSocket | None":
        """The socket that this node's HAProxy looks for, or None where no HAProxy of ours runs."""
        config = os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC")
        return cls(app, socket_of(Path(config).parent, server_name)) if config else None

    def start(self) -> None:
        """Open the socket; requests are answered from the next turn of the running event loop on."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path.unlink(missing_ok=True)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._task = asyncio.create_task(self._server.serve([listener]))

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests, so that HAProxy brings them to another gateway, and let those under way end. Whether
        they have, in that time.
        """
        self._path.unlink(missing_ok=True)
        if self._task is None:
            return True
        self._server.should_exit = True
        ended, _ = await asyncio.wait([self._task], timeout=timeout_s)
        return bool(ended)

    async def close(self) -> None:
        """Take no more requests, and cut what is under way."""
        if not await self.drain(CLOSE_TIMEOUT_S):
            assert self._task is not None, "there is something to cut"
            self._task.cancel()
