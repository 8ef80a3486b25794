"""The gateway over real HTTP: pages, keys, request ids, what is logged and counted."""

import json
import os
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

from serving.gateway.routes import Page
from serving.tenancy.keys import NewKey
from tests.support.dialects import BODIES
from tests.support.engines import AppEngine, Recorder
from tests.support.stack import ALIAS, CHAT, MODEL, POOL, Stack, chat, chat_bytes, start_stack
from tests.support.wire import get, post


def create_key(stack: Stack, name: str = "key", models: tuple[str, ...] | None = None) -> str:
    """A key's plaintext; the gateway has heard of it."""
    minted, _ = stack.store.create(NewKey(name, models=models), os.urandom, time.time())
    stack.authenticator.refresh(time.time())
    return minted.plaintext


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# --------------------------------------------------------------------------------------------------------------- pages


async def test_health_says_that_the_process_lives(stack: Stack) -> None:
    stack.gateway.is_ready = False
    response = await stack.client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_ready_says_whether_requests_would_be_served(stack: Stack) -> None:
    assert (await stack.client.get("/ready")).status_code == 200
    stack.gateway.is_ready = False
    response = await stack.client.get("/ready")
    assert (response.status_code, response.json()) == (503, {"status": "not ready"})


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/demo", "/v1/models/nope"])
async def test_head_is_get_without_the_body(stack: Stack, path: str) -> None:
    got = await stack.client.get(path)
    async with await stack.wire() as wire:
        await wire.send(get(path, method="HEAD"))
        head = await wire.answer(is_head=True)
        assert (head.status, head.headers["content-length"]) == (got.status_code, got.headers["content-length"])
        await wire.send(get("/health"))  # nothing of a body came, or this answer could not be read
        assert (await wire.answer()).status == 200


async def test_models_are_listed_and_shown(stack: Stack) -> None:
    listed = (await stack.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [(model["id"], model["max_model_len"]) for model in listed["data"]] == [(MODEL, 4096), (ALIAS, 4096)]
    assert (await stack.client.get(f"/v1/models/{ALIAS}")).json() == listed["data"][1]
    missing = await stack.client.get("/v1/models/nope")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


# ---------------------------------------------------------------------------------------------------------------- keys

EVERYWHERE = ["/v1/models", "/v1/models/demo", *BODIES, "/v1/messages/count_tokens", "/v1/embeddings", "/tokenize"]


@pytest.mark.parametrize("path", EVERYWHERE)
async def test_once_a_key_exists_one_is_needed(stack: Stack, path: str) -> None:
    create_key(stack)
    method = "GET" if path.startswith("/v1/models") else "POST"
    for headers in ({}, bearer("blst_live_made_up"), {"authorization": "Basic eDp5"}, {"x-api-key": ""}):
        response = await stack.client.request(method, path, headers=headers, json={} if method == "POST" else None)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        if path.startswith("/v1/messages"):
            assert response.json()["error"]["type"] == "authentication_error"
        else:
            assert response.json()["error"]["code"] == "invalid_api_key"


async def test_health_and_ready_need_no_key(stack: Stack) -> None:
    create_key(stack)
    for page in (Page.HEALTH, Page.READY):
        assert (await stack.client.get(page.value)).status_code == 200


async def test_a_key_opens_what_it_may_use(stack: Stack) -> None:
    key = create_key(stack, models=(ALIAS,))
    for headers in (bearer(key), {"x-api-key": key}):
        assert (await stack.client.post(CHAT, json=chat(max_tokens=1), headers=headers)).status_code == 200
    listed = (await stack.client.get("/v1/models", headers=bearer(key))).json()["data"]
    assert [model["id"] for model in listed] == [MODEL, ALIAS]


async def test_a_key_for_other_models_is_403_and_sees_none(stack: Stack) -> None:
    key = create_key(stack, models=("other",))
    response = await stack.client.post(CHAT, json=chat(), headers=bearer(key))
    assert response.status_code == 403
    assert response.json()["error"] | {"message": ""} == {
        "message": "", "type": "permission_error", "param": "model", "code": "model_not_allowed",
    }  # fmt: skip
    assert (await stack.client.get("/v1/models", headers=bearer(key))).json()["data"] == []
    assert (await stack.client.get(f"/v1/models/{MODEL}", headers=bearer(key))).status_code == 404


async def test_a_revoked_key_is_refused_after_the_next_beat(stack: Stack) -> None:
    key = create_key(stack)
    assert (await stack.client.get("/v1/models", headers=bearer(key))).status_code == 200
    stack.store.revoke("key", time.time())
    stack.authenticator.refresh(time.time())
    assert (await stack.client.get("/v1/models", headers=bearer(key))).status_code == 401


# ------------------------------------------------------------------------------------------------------------- answers


async def test_a_whole_answer_comes_as_the_engine_made_it(tmp_path: Path) -> None:
    recorder = Recorder(b'{"odd" :  "spacing\\u00e9"}')
    async with start_stack(tmp_path, AppEngine(recorder)) as stack:
        response = await stack.client.post(CHAT, json=chat())
        assert response.content == recorder.answer
        assert response.headers["x-ballast-pool"] == POOL
        assert response.headers["x-ballast-model-version"] == "v1"
        assert response.headers["content-type"] == "application/json"
        assert int(response.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize("name", [MODEL, ALIAS])
async def test_the_name_asked_for_is_echoed(stack: Stack, name: str) -> None:
    whole = await stack.client.post(CHAT, json=chat(max_tokens=1) | {"model": name})
    assert whole.json()["model"] == name
    streamed = await stack.client.post(CHAT, json=chat(max_tokens=1, stream=True) | {"model": name})
    assert f'"model":"{name}"' in streamed.text
    assert (await stack.request_line(stream=True))["model"] == MODEL, "logs and metrics go by the model's own name"


async def test_every_endpoint_reaches_the_engine_under_its_own_path(tmp_path: Path) -> None:
    recorder = Recorder()
    async with start_stack(tmp_path, AppEngine(recorder)) as stack:
        for path, body in BODIES.items():
            response = await stack.client.post(path, json=body | {"stream": False, "model": ALIAS})
            assert response.status_code == 200, response.text
        assert recorder.paths == list(BODIES)
        assert recorder.model_names == [ALIAS] * len(BODIES)


async def test_a_bug_of_ours_is_a_500_in_our_shape(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(stack.inference, "_check", broken)
    response = await stack.client.post(CHAT, json=chat())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret detail" not in response.text


async def test_a_websocket_is_refused(stack: Stack) -> None:
    upgrade = {
        "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    async with await stack.wire() as wire:
        await wire.send(get("/v1/realtime", upgrade))
        assert (await wire.read_head()).status == 403


# --------------------------------------------------------------------------------------------------------- request ids

HOSTILE_IDS = ["a" * 129, "a b", "a\tb", "<script>", 'x"y', "é", "../../etc", "a;b", "%0d%0aSet-Cookie:x", "\x1b[31m"]


@pytest.mark.parametrize("path", ["/health", "/nope", "/v1/models", CHAT])
async def test_every_answer_carries_an_id_of_ours(stack: Stack, path: str) -> None:
    ids = set()
    for _ in range(2):
        response = await stack.client.get(path, headers={"x-request-id": "client-chosen"})
        ids.add(response.headers["x-request-id"])
        assert response.headers.get_list("x-request-id") == [response.headers["x-request-id"]]
    assert len(ids) == 2
    assert all(request_id.startswith("req-") and len(request_id) == 36 for request_id in ids)


async def test_a_decent_id_of_the_clients_is_in_the_log_alone(stack: Stack) -> None:
    response = await stack.client.get("/health", headers={"x-request-id": "order-66.A_b"})
    line = await stack.request_line(client_request_id="order-66.A_b")
    assert line["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("client_id", HOSTILE_IDS)
async def test_another_id_of_the_clients_is_dropped(stack: Stack, client_id: str) -> None:
    async with await stack.wire() as wire:
        await wire.send(get("/health", {"x-request-id": client_id}))
        answer = await wire.answer()
    if answer.status == 200:  # the HTTP parser may refuse it before us
        assert (await stack.request_line(route="/health"))["client_request_id"] is None
    assert client_id not in str(answer.headers)


async def test_the_engine_gets_our_id(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        seen.append(dict(scope["headers"])[b"x-request-id"])
        await Recorder()(scope, receive, send)

    async with start_stack(tmp_path, AppEngine(app)) as stack:
        response = await stack.client.post(CHAT, json=chat(), headers={"x-request-id": "mine"})
    assert [value.decode() for value in seen] == [response.headers["x-request-id"]]


# ---------------------------------------------------------------------------------------------------- logs and metrics


async def test_no_prompt_answer_or_key_reaches_logs_or_metrics(stack: Stack) -> None:
    key = create_key(stack)
    canary = "xyzzy-canary"
    requests = [
        chat(canary, max_tokens=2),
        chat(canary, max_tokens=2, stream=True),
        chat(f"{canary} !break", stream=True),
        chat(f"{canary} !status 500"),
        chat(f"{canary} !status 400"),
        chat(canary, temperature=99),
        chat(canary, **{canary: 1}),
        chat(canary) | {"model": canary},
        chat(canary, tools=[{"type": canary}]),
    ]
    for body in requests:
        await stack.client.post(CHAT, json=body, headers=bearer(key))
    for raw in (b'{"a": "' + canary.encode(), b'{"' + canary.encode() + b'":1,"' + canary.encode() + b'":2}'):
        await stack.client.post(CHAT, content=raw, headers=bearer(key) | {"content-type": "application/json"})
    await stack.client.get(f"/{canary}", headers=bearer(key))
    await stack.client.get("/v1/models", headers=bearer(key[:-1] + "0"))
    await stack.until(lambda: len(stack.logs.requests()) == len(requests) + 4)
    written = "\n".join(stack.logs.lines) + generate_latest().decode()
    assert canary not in written
    assert "w0 " not in written
    assert key.split("_")[3] not in written
    assert all("\n" not in line for line in stack.logs.lines)


async def test_a_request_is_one_line_with_what_it_cost(stack: Stack) -> None:
    response = await stack.client.post(CHAT, json=chat("one two three", max_tokens=5))
    line = await stack.request_line(request_id=response.headers["x-request-id"])
    expected = {
        "level": "info", "event": "request", "key": "anonymous", "method": "POST", "route": CHAT, "status": 200,
        "error": None, "model": MODEL, "pool": POOL, "replica": "r0", "stream": False, "prompt_tokens": 3,
        "cached_tokens": 0, "output_tokens": 5, "finish_reason": "length",
    }  # fmt: skip
    assert expected.items() <= line.items()
    assert 0 < line["ttft_ms"] <= line["duration_ms"]


async def test_a_streams_cost_is_known_though_nobody_asked(stack: Stack) -> None:
    before = {d: sample("ballast_tokens_total", model=MODEL, pool=POOL, direction=d) for d in ("prompt", "output")}
    response = await stack.client.post(CHAT, json=chat("one two", max_tokens=7, stream=True))
    assert "usage" not in response.text
    line = await stack.request_line(request_id=response.headers["x-request-id"])
    assert (line["prompt_tokens"], line["output_tokens"], line["finish_reason"]) == (2, 7, "length")
    for direction, tokens in (("prompt", 2), ("output", 7)):
        now = sample("ballast_tokens_total", model=MODEL, pool=POOL, direction=direction)
        assert now - before[direction] == tokens


async def test_a_client_that_does_not_ask_for_usage_is_not_sent_it(tmp_path: Path) -> None:
    """The engine is asked for its usage chunk exactly when the client asked."""
    recorder = Recorder()
    async with start_stack(tmp_path, AppEngine(recorder)) as stack:
        await stack.client.post(CHAT, json=chat(stream=True))
        await stack.client.post(CHAT, json=chat(stream=True, stream_options={"include_usage": True}))
    without, asked = (json.loads(body) for body in recorder.bodies)
    assert not (without.get("stream_options") or {}).get("include_usage")
    assert asked["stream_options"]["include_usage"] is True


async def test_requests_are_counted_by_outcome_and_none_stays_in_flight(stack: Stack) -> None:
    def counted(code: str) -> float:
        return sample("ballast_requests_total", model=MODEL, pool=POOL, route=CHAT, code=code)

    def refused() -> float:
        return sample("ballast_requests_total", model="", pool="", route=CHAT, code="400")

    before = counted("200"), refused()
    await stack.client.post(CHAT, json=chat(max_tokens=1))
    await stack.client.post(CHAT, json={"model": MODEL})
    await stack.until(lambda: len(stack.logs.requests()) == 2)
    assert (counted("200") - before[0], refused() - before[1]) == (1, 1)
    assert sample("ballast_requests_in_flight") == 0


async def test_labels_are_bounded_whatever_clients_send(stack: Stack) -> None:
    for number in range(5):
        await stack.client.get(f"/made-up-{number}")
        await stack.client.get(f"/v1/models/made-up-{number}")
        await stack.client.post(CHAT, json=chat() | {"model": f"made-up-{number}"})
    assert "made-up" not in generate_latest().decode()


# ------------------------------------------------------------------------------------------------------------- limits


async def test_more_requests_than_the_limit_are_503_with_retry_after(tmp_path: Path) -> None:
    async with start_stack(tmp_path, limits={"max_concurrent_requests": 1}) as stack:
        first = await stack.open_chat("!stall")
        await stack.until(lambda: stack.inference.num_in_flight == 1)
        response = await stack.client.post(CHAT, json=chat())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_is_overloaded")
        assert response.headers["retry-after"] == "1"
        first.abort()
        await stack.until(lambda: stack.inference.num_in_flight == 0)
        assert (await stack.client.post(CHAT, json=chat(max_tokens=1))).status_code == 200


async def test_a_refusal_before_the_body_was_read_closes_the_connection(stack: Stack) -> None:
    """Or the server would go on receiving what nobody wants."""
    create_key(stack)
    async with await stack.wire() as wire:
        await wire.send(post(CHAT, chat_bytes()))
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await wire.until_closed() == b""


async def test_a_refusal_after_the_body_was_read_keeps_the_connection(stack: Stack) -> None:
    async with await stack.wire() as wire:
        for _ in range(2):
            await wire.send(post(CHAT, b"{}"))
            answer = await wire.answer()
            assert (answer.status, answer.headers.get("connection")) == (400, None)
