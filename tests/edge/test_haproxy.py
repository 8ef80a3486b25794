"""HAProxy as Ray Serve starts it: the gaps of Ray's config are closed, in the text and in the running program."""

import asyncio
import json
import re
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from serving.edge.haproxy import PAGES, UnknownConfig, harden, socket_of
from serving.edge.local_socket import LocalSocket
from serving.edge.middleware import EdgeMiddleware
from serving.engine.scripted import Script, ScriptedEngine
from serving.errors import ANSWERS
from tests.edge.conftest import Edge
from tests.support.stack import CHAT, Stack, chat_bytes, start_stack, until
from tests.support.wire import GUARD_S, Wire, get, post

FOLDER, SOCKETS = Path("pages"), Path("edge")


# ------------------------------------------------------------------------------------------------------------ the text


def test_headers_get_a_deadline(edge: Edge) -> None:
    assert "timeout http-request" not in edge.rays_config
    assert harden(edge.rays_config, FOLDER, SOCKETS).count("    timeout http-request 5s\n") == 1


def test_the_admin_socket_is_for_its_owner_alone(edge: Edge) -> None:
    hardened = harden(edge.rays_config, FOLDER, SOCKETS)
    assert "mode 666" in edge.rays_config
    assert "mode 666" not in hardened
    assert re.search(r"stats socket \S+ mode 600 level admin", hardened)


def test_statistics_and_metrics_are_bound_to_loopback(edge: Edge) -> None:
    binds = re.findall(r"bind (\S+)", harden(edge.rays_config, FOLDER, SOCKETS))
    assert sorted(binds) == sorted(f"127.0.0.1:{edge.ports[name]}" for name in ("frontend", "stats", "metrics"))


@pytest.mark.parametrize(("host", "bind"), [("0.0.0.0", "0.0.0.0"), ("::1", "[::1]"), ("10.1.2.3", "10.1.2.3")])
def test_the_public_listener_alone_goes_where_the_config_says(edge: Edge, host: str, bind: str) -> None:
    binds = re.findall(r"bind (\S+):\d+", harden(edge.rays_config, FOLDER, SOCKETS, host))
    assert sorted(binds) == sorted(["127.0.0.1", "127.0.0.1", bind])


def test_rays_own_proxy_gets_no_request(edge: Edge) -> None:
    hardened = harden(edge.rays_config, FOLDER, SOCKETS)
    assert "backup" in edge.rays_config
    assert "backup" not in hardened
    assert f"server gateway 127.0.0.1:{edge.ports['gateway']}" in hardened


def test_a_gateway_of_this_node_is_reached_by_its_socket_and_checked_on_its_port(edge: Edge, tmp_path: Path) -> None:
    port = edge.ports["gateway"]
    assert f"    server gateway 127.0.0.1:{port} check " in harden(edge.rays_config, FOLDER, tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_of(tmp_path, "gateway")))
        hardened = harden(edge.rays_config, FOLDER, tmp_path)
    assert f"    server gateway unix@{tmp_path}/gateway-gateway.sock check addr 127.0.0.1 port {port} " in hardened


def test_gateways_that_ray_has_forgotten_serve_on(edge: Edge, tmp_path: Path) -> None:
    """While Ray Serve builds an application anew, it names none."""
    forgetful = re.sub(r"(?m)^    server \S+ \S+ check (?!backup).*\n", "", edge.rays_config)
    assert not re.search(r"(?m)^    server ", harden(forgetful, FOLDER, tmp_path))
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as dead:
        living.bind(str(socket_of(tmp_path, "x-alive")))
        dead.bind(str(socket_of(tmp_path, "x-dead")))
        living.listen()
        forgotten = harden(forgetful, FOLDER, tmp_path)
        known = harden(edge.rays_config, FOLDER, tmp_path)
    assert re.findall(r"(?m)^    server (.*)$", forgotten) == [
        f"gateway-alive unix@{tmp_path}/gateway-alive.sock no-check"
    ]
    assert "gateway-alive" not in known, "where Ray names gateways, its word counts"


def test_requests_are_not_spliced(edge: Edge) -> None:
    """HAProxy often does not notice then that a client has left while it waited for a whole answer."""
    assert "option splice-request" in edge.rays_config
    assert "option splice-request" not in harden(edge.rays_config, FOLDER, SOCKETS)
    assert "option abortonclose" in harden(edge.rays_config, FOLDER, SOCKETS)


def test_hardening_twice_is_hardening_once(edge: Edge) -> None:
    once = harden(edge.rays_config, FOLDER, SOCKETS)
    assert harden(once, FOLDER, SOCKETS) == once


@pytest.mark.parametrize(
    "line", ["    mode http\n", "tune.bufsize", "mode 666", "    bind :", "  bind \\*:", "    errorfile"]
)
def test_a_config_that_is_not_rays_is_refused(edge: Edge, line: str) -> None:
    """When Ray writes another config than the one we know, an edge that does not start is better than an open one."""
    with pytest.raises(UnknownConfig):
        harden(re.sub(line, "# gone ", edge.rays_config), FOLDER, SOCKETS)


@pytest.mark.parametrize("status", PAGES)
def test_an_error_page_is_a_whole_response_in_the_shape_and_words_of_the_gateway(status: int) -> None:
    """The launcher runs with the standard library alone, so that it repeats what ``serving.errors`` says."""
    head, body = PAGES[status].response().split("\r\n\r\n")
    error = json.loads(body)["error"]
    assert head.startswith(f"HTTP/1.1 {503 if status in (502, 504) else status} ")
    assert f"content-length: {len(body)}" in head
    assert ("retry-after: 1" in head) == (status in (502, 503, 504))
    assert set(error) == {"message", "type", "param", "code"}
    ours = {(answer.status, answer.type, answer.code) for answer in ANSWERS.values()}
    ours |= {(status, kind, None) for status, kind, _ in ours}  # of one status without a reason of its own
    assert (PAGES[status].status, error["type"], error["code"]) in ours


def test_every_page_of_rays_is_replaced_and_ours_are_all_there(edge: Edge) -> None:
    assert re.findall(r"errorfile (\d+) (\S+)", harden(edge.rays_config, FOLDER, SOCKETS)) == [
        (str(status), f"pages/error-{status}.http") for status in PAGES
    ]


# ----------------------------------------------------------------------------------------------------- the real program


class Proxied:
    """A stack behind a running HAProxy; ``local`` is the socket by which it is reached, if it is."""

    def __init__(self, stack: Stack, edge: Edge, port: int, local: LocalSocket | None) -> None:
        self.stack, self.edge, self.port, self.local = stack, edge, port, local

    async def wire(self) -> Wire:
        return await Wire.connect(self.port)


@pytest.fixture(params=["unix", "tcp"])
async def proxied(request: pytest.FixtureRequest, tmp_path: Path, edge: Edge) -> AsyncIterator[Proxied]:
    """HAProxy reaching a gateway of its own node, and one of another."""
    engine = ScriptedEngine(Script(step_s=0.005))
    async with start_stack(tmp_path, engine) as stack, AsyncExitStack() as cleanup:
        local = None
        if request.param == "unix":
            local = LocalSocket(EdgeMiddleware(stack.gateway), socket_of(edge.config_path.parent, "gateway"))
            local.start()
            cleanup.push_async_callback(local.close)
        config = edge.rays_config.replace(f"127.0.0.1:{edge.ports['gateway']}", f"127.0.0.1:{stack.port}")
        edge.config_path.write_text(config)
        process = await asyncio.create_subprocess_exec(
            edge.launcher, "-db", "-f", str(edge.config_path), env=edge.environment,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await until(lambda: process.returncode is not None or is_listening(edge.ports["frontend"]))
            assert process.returncode is None, "HAProxy refused the config"
            yield Proxied(stack, edge, edge.ports["frontend"], local)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def is_listening(port: int) -> bool:
    return listening_address(port) is not None


def listening_address(port: int) -> str | None:
    """Where a socket listens on ``port``, as Linux says."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, _, state = line.split()[1:4]
        address, hex_port = local.split(":")
        if state == "0A" and int(hex_port, 16) == port:
            return socket.inet_ntoa(int(address, 16).to_bytes(4, "little"))
    return None


async def test_a_stream_comes_through_whole(proxied: Proxied) -> None:
    async with await proxied.wire() as wire:
        await wire.send(post(CHAT, chat_bytes(stream=True, max_tokens=20)))
        answer = await wire.answer()
        assert answer.status == 200
        assert all(b"w%d " % number in answer.body for number in range(20))
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_is_noticed_behind_the_proxy(proxied: Proxied) -> None:
    wire = await proxied.wire()
    await wire.send(post(CHAT, chat_bytes("gone", stream=True, max_tokens=4000)))
    await wire.read_until(b"w0 ")
    async with asyncio.timeout(1):
        wire.abort()
        await proxied.stack.until(lambda: proxied.stack.engines[0].aborted)


async def test_a_refused_body_is_answered_through_the_proxy(proxied: Proxied) -> None:
    async with await proxied.wire() as wire:
        await wire.send(post(CHAT, b"", {"content-length": str(2**31)}))
        assert (await wire.answer()).json()["error"]["code"] == "body_too_large"


async def test_f24_slow_headers_are_cut_after_five_seconds_and_lock_nobody_out(proxied: Proxied) -> None:
    """The one test that waits for a real clock: the deadline is HAProxy's."""
    started_s = time.monotonic()
    slow = [await proxied.wire() for _ in range(60)]
    for wire in slow:
        await wire.send(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ")
    async with await proxied.wire() as wire:
        await wire.send(get("/health"))
        assert (await wire.answer()).status == 200
    assert time.monotonic() - started_s < 4, "a decent client is served while the slow ones are held"
    ends = await asyncio.gather(*(wire.until_closed() for wire in slow))
    assert 4.5 < time.monotonic() - started_s < GUARD_S
    assert {end.split(b"\r\n")[0] for end in ends} == {b"HTTP/1.1 408 Request Time-out"}
    for wire in slow:
        await wire.close()


NOT_HTTP = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: b\0c\r\n\r\n",
    "two lengths": post(CHAT, b"{}", {"content-length": "2\r\ncontent-length: 3"}),
    "64 KB header": get("/health", {"x-long": "v" * 65_536}),
}


@pytest.mark.parametrize("name", NOT_HTTP)
async def test_f32_what_is_not_http_is_a_400_in_haproxys_own_words(proxied: Proxied, name: str) -> None:
    """And so is the 408 above: below the layer that knows of requests, HAProxy 2.8 reads no error page
    (haproxy/haproxy#3032). When this fails, it has learnt to, and docs/http.md may say so.
    """
    async with await proxied.wire() as wire:
        await wire.send(NOT_HTTP[name])
        answer = await wire.answer()
        await wire.until_closed()
    assert (answer.status, answer.headers["content-type"]) == (400, "text/html")


TOO_MUCH = {
    "300 headers": post(CHAT, b"{}", {f"x-{number}": "v" for number in range(300)}),
    "40 KB header": post(CHAT, b"{}", {"x-long": "v" * 40_000}),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_f32_too_many_headers_are_the_gateways_431(proxied: Proxied, name: str) -> None:
    async with await proxied.wire() as wire:
        await wire.send(TOO_MUCH[name])
        answer = await wire.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (431, "headers_too_large")


async def test_headers_within_the_gateways_limit_come_through(proxied: Proxied) -> None:
    async with await proxied.wire() as wire:
        await wire.send(get("/health", {"x-long": "v" * 30_000}))
        assert (await wire.answer()).status == 200


async def test_the_running_admin_socket_is_private(proxied: Proxied) -> None:
    assert stat.S_IMODE(proxied.edge.socket_path.stat().st_mode) == 0o600


async def test_the_running_listeners_are_on_loopback(proxied: Proxied) -> None:
    for name in ("frontend", "stats", "metrics"):
        assert listening_address(proxied.edge.ports[name]) == "127.0.0.1"


async def test_without_a_gateway_the_answer_is_our_503(proxied: Proxied) -> None:
    for server in proxied.stack._server.servers:
        server.close()
    if proxied.local is not None:
        await proxied.local.close()
    async with await proxied.wire() as wire:
        await wire.send(get("/v1/models"))
        answer = await wire.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["retry-after"] == "1"
