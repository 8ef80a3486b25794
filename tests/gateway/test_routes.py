"""What exists and what does not, over real HTTP: everything outside the table is one 404 in OpenAI's shape."""

import pytest

from serving.errors import MethodNotAllowed, NotFound
from serving.gateway.endpoint import Endpoint
from serving.gateway.routes import dialect_of, find_route
from serving.protocol.openai import Dialect
from tests.support.stack import Stack
from tests.support.wire import get, post

#: What vLLM's and Ray's own servers would answer, and spellings of our routes that are not our routes.
ABSENT = """
    / /docs /redoc /openapi.json /metrics /load /version /ping /invocations /server_info /is_sleeping /sleep /wake_up
    /scale_elastic_ep /is_scaling_elastic_ep /reset_prefix_cache /reset_mm_cache /collective_rpc /start_profile
    /stop_profile /v1/load_lora_adapter /v1/unload_lora_adapter /pooling /classify /score /v1/score /rerank /v1/rerank
    /v2/rerank /v1/audio/transcriptions /v1/audio/translations /v1/images/generations /v1/moderations /v1/files
    /v1/fine_tuning/jobs /v1/assistants /v1/realtime /v1/chat/completions/render /v1/responses/resp_1
    /v1/chat/completions/batch /inference/v1/generate /abort_requests /pause /resume /update_weights
    /-/healthz /-/routes /api/version /admin/status /internal/route /api/jobs/
    //v1/chat/completions /v1//chat/completions /v1/chat/completions/ /V1/chat/completions /v1/Chat/Completions
    /v1/models/ /v1/./models /v1/../v1/models /v1/%2e/models /v1/%2e%2e/metrics /v1/chat%2fcompletions%2f
    /v1/models%00 /health/ /Health /ready/x /v1/models%20 /v1/chat/completions;x /%2f%2fv1/models /.well-known/x
""".split()


async def test_what_is_not_in_the_table_is_404_whatever_the_method(stack: Stack) -> None:
    wire = await stack.wire()
    for path in ABSENT:
        for request in (get(path), post(path, b"{}")):
            await wire.send(request)
            answer = await wire.answer()
            error = answer.json()["error"]
            assert (answer.status, error["type"], error["code"]) == (404, "invalid_request_error", "unknown_url"), path
            assert set(error) == {"message", "type", "param", "code"}
            assert answer.headers["x-request-id"].startswith("req-")
            if answer.headers.get("connection") == "close":
                await wire.close()
                wire = await stack.wire()
    await wire.close()


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "post"])
def test_a_post_route_takes_post_alone(endpoint: Endpoint, method: str) -> None:
    with pytest.raises(MethodNotAllowed):
        find_route(method, endpoint.value)


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/demo"])
def test_a_page_takes_get_and_head(path: str) -> None:
    assert find_route("GET", path) == find_route("HEAD", path)
    with pytest.raises(MethodNotAllowed):
        find_route("POST", path)


def test_the_label_of_a_model_page_is_bounded() -> None:
    route = find_route("GET", "/v1/models/org/name")
    assert (route.path, route.argument) == ("/v1/models/{id}", "org/name")


def test_an_unknown_url_is_quoted_only_in_part() -> None:
    with pytest.raises(NotFound) as caught:
        find_route("G" * 1000, "/" + "x" * 10_000)
    assert len(caught.value.message) < 300


def test_errors_look_as_the_routes_clients_expect() -> None:
    assert dialect_of("/v1/messages") is dialect_of("/v1/messages/count_tokens") is Dialect.ANTHROPIC
    assert dialect_of("/v1/responses") is Dialect.RESPONSES
    assert dialect_of("/nowhere") is dialect_of("/v1/chat/completions") is Dialect.OPENAI


async def test_a_wrong_method_is_405_over_http(stack: Stack) -> None:
    response = await stack.client.get("/v1/chat/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    response = await stack.client.post("/v1/models", json={})
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
