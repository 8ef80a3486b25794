"""The operator's listener."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serving.gateway import admin
from serving.gateway.admin import AdminServer, replica_metrics
from serving.ports import free_port
from serving.protocol.asgi import Receive, Scope, Send
from tests.support.engines import AppEngine, Events, Recorder, start
from tests.support.stack import Stack, start_stack

VLLM_TEXT = b"""# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 3.0
# HELP process_start_time_seconds Start time.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7e+09
"""


@pytest.fixture
async def two_replicas(tmp_path: Path) -> AsyncIterator[Stack]:
    async with start_stack(tmp_path, AppEngine(Recorder(VLLM_TEXT)), AppEngine(Recorder(VLLM_TEXT))) as stack:
        yield stack


async def test_every_replicas_series_are_shown_with_pool_and_replica(two_replicas: Stack) -> None:
    text = (await replica_metrics(two_replicas.directory.all())).decode()
    for replica in ("r0", "r1"):
        labels = f'pool="cpu",replica="{replica}"'
        assert f'vllm:num_requests_running{{{labels},engine="0",model_name="demo"}} 3.0\n' in text
        assert f"process_start_time_seconds{{{labels}}} 1.7e+09\n" in text


async def test_a_family_is_declared_once_and_its_samples_stand_together(two_replicas: Stack) -> None:
    lines = (await replica_metrics(two_replicas.directory.all())).decode().splitlines()
    assert [line.split()[0:3:2] for line in lines if line.startswith("# TYPE")] == [
        ["#", "vllm:num_requests_running"], ["#", "process_start_time_seconds"],
    ]  # fmt: skip
    assert [line.startswith("vllm:") for line in lines if not line.startswith("#")] == [True, True, False, False]


async def test_a_replica_without_metrics_is_left_out(tmp_path: Path) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("no metrics")

    engines = [AppEngine(Recorder(VLLM_TEXT)), AppEngine(Recorder(b"oops", status=404)), AppEngine(broken)]
    async with start_stack(tmp_path, *engines) as stack:
        text = (await replica_metrics(stack.directory.all())).decode()
    assert 'replica="r0"' in text
    assert "oops" not in text
    assert 'replica="r2"' not in text


async def test_a_replica_that_does_not_answer_is_given_up_and_its_request_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "SCRAPE_TIMEOUT_S", 0.05)
    silent = Events([], holds=True)
    async with start_stack(tmp_path, AppEngine(silent)) as stack:
        assert await replica_metrics(stack.directory.all()) == b""
        await stack.until(silent.was_dropped.is_set)
        await stack.until(lambda: stack.directory.all()[0].link.num_streams == 0)


async def test_the_port_has_metrics_and_status_and_nothing_else(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    server = AdminServer(0, stack.directory, lambda: {"ready": True})
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/admin/status")).json() == {"ready": True}
        for path in ("/", "/admin", "/admin/", "/v1/models", "/metrics/"):
            assert (await client.get(path)).status_code == 404


async def test_a_web_page_cannot_reach_it_under_a_name_of_its_own(stack: Stack) -> None:
    transport = httpx.ASGITransport(AdminServer(0, stack.directory, lambda: {"secret": 1}))
    async with httpx.AsyncClient(transport=transport, base_url="http://rebound.example:8001") as client:
        answer = await client.get("/admin/status")
    assert answer.status_code == 403
    assert "secret" not in answer.text


def test_of_two_that_ask_for_the_port_at_once_one_has_it() -> None:
    port = free_port()
    first = admin._bind(port)
    assert first is not None
    with first:
        assert admin._bind(port) is None


async def test_a_stream_of_metrics_is_read_to_its_end(tmp_path: Path) -> None:
    async def in_parts(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, content_type=b"text/plain")
        for index in range(0, len(VLLM_TEXT), 50):
            await send({"type": "http.response.body", "body": VLLM_TEXT[index : index + 50], "more_body": True})
            await asyncio.sleep(0)

    async with start_stack(tmp_path, AppEngine(in_parts)) as stack:
        assert (await replica_metrics(stack.directory.all())).count(b'replica="r0"') == 2


async def test_one_that_closes_leaves_the_port_to_another(stack: Stack) -> None:
    port = free_port()
    first, second = (AdminServer(port, stack.directory, lambda name=name: {"name": name}) for name in ("one", "two"))

    async def answers(name: str) -> None:
        async with httpx.AsyncClient() as client, asyncio.timeout(10):
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{port}/admin/status")).json() == {"name": name}:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.02)

    first.start()
    await answers("one")
    second.start()
    await first.close()
    await answers("two")
    await second.close()
