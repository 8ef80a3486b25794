"""What a dropped request does to an app as vLLM's is built: Starlette's streams, and tasks that nobody waits for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.responses import StreamingResponse

from serving.engine.base import current_request
from serving.protocol.asgi import AsgiApp, Receive, Scope, Send
from serving.protocol.frames import Kind
from serving.replica.server import ReplicaServer
from tests.support.engines import AppEngine
from tests.support.peers import GatewayPeer
from tests.support.stack import SECRET, until


async def dropped(tmp_path: Path, app: AsgiApp, is_running: asyncio.Event) -> dict[str, object]:
    """Cancel a request once ``is_running``; returns the usage that the replica reports in the end."""
    server = ReplicaServer(AppEngine(app), "r0", SECRET)
    await server.listen_unix(tmp_path / "r0.sock")
    peer = await GatewayPeer.accepted(tmp_path / "r0.sock")
    try:
        peer.open(1)
        await until(is_running.is_set)
        peer.send(Kind.CANCEL, 1)
        kind, _, usage = await peer.read_end()
        assert kind is Kind.END
        return dict(usage)
    finally:
        await peer.close()
        await server.close()


async def test_a_stream_that_has_nothing_to_send_is_cancelled_at_once(tmp_path: Path) -> None:
    """A request that waits in the engine must not wait on for nobody."""
    is_running, was_cancelled = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        is_running.set()
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            was_cancelled.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await StreamingResponse(events())(scope, receive, send)

    await dropped(tmp_path, app, is_running)
    assert was_cancelled.is_set()


async def test_the_cost_is_told_when_the_engine_has_let_go(tmp_path: Path) -> None:
    """vLLM's app returns before the task that it has cancelled has said what it made."""
    is_running = asyncio.Event()

    async def make() -> None:
        request = current_request.get()
        request.num_generating += 1
        is_running.set()
        try:
            await asyncio.Event().wait()
        finally:
            request.output_tokens = 7
            request.num_generating -= 1

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        task = asyncio.create_task(make())
        await receive()
        task.cancel()

    assert (await dropped(tmp_path, app, is_running))["output_tokens"] == 7
