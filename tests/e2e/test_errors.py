"""The error contract, through HAProxy, Ray Serve, the gateway and the engine."""

import uuid

import httpx
import openai
import pytest

from tests.e2e.prompts import CAPITAL
from tests.e2e.server import MODEL, POOL, Server

CHAT = "/v1/chat/completions"


def test_a_wrong_key_is_an_authentication_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


def test_a_key_for_another_model_is_refused(server: Server) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.outsider_key, max_retries=0) as outsider,
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        outsider.chat.completions.create(model=MODEL, messages=CAPITAL)
    assert caught.value.code == "model_not_allowed"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=CAPITAL)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_the_clients_fault(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "one two three " * 4000}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert "4096" in str(caught.value)


def test_an_output_over_the_context_is_the_clients_fault(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=CAPITAL, max_completion_tokens=4090)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_field_is_refused_and_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model=MODEL, messages=CAPITAL, extra_body={"temperatur": 1})
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "temperatur")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b'{"model": "ballast-demo"}', 400),
        ("POST", CHAT, b"\xff\xfe", 400),
        ("GET", CHAT, b"", 405),
        ("GET", "/v1/files", b"", 404),
        ("GET", "/metrics", b"", 404),
        ("POST", "/invocations", b"{}", 404),
        ("GET", "/openapi.json", b"", 404),
    ],
)
def test_every_refusal_has_one_shape_and_our_request_id(
    http: httpx.Client, method: str, path: str, body: bytes, status: int
) -> None:
    answer = http.request(method, path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert isinstance(error["code"], str)
    assert len(answer.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_request_id_is_ours_whatever_the_client_sends(server: Server, http: httpx.Client, stream: bool) -> None:
    """It stands in the response once and in the log; the client's own is logged beside it."""
    own = f"client-{uuid.uuid4().hex}"
    body = {"model": MODEL, "messages": CAPITAL, "max_tokens": 2, "stream": stream}
    answer = http.post(CHAT, json=body, headers={"x-request-id": own})
    (request_id,) = answer.headers.get_list("x-request-id")
    assert request_id.startswith("req-")
    line = server.request_line(request_id)
    assert line["client_request_id"] == own
    assert (line["status"], line["stream"], line["pool"]) == (200, stream, POOL)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_which_pool_and_version_made_it(server: Server, http: httpx.Client, stream: bool) -> None:
    body = {"model": MODEL, "messages": CAPITAL, "max_tokens": 2, "stream": stream}
    answer = http.post(CHAT, json=body)
    assert answer.headers["x-ballast-pool"] == POOL
    assert answer.headers["x-ballast-model-version"] == server.replica()["version"]
    assert int(answer.headers["openai-processing-ms"]) >= 0


def test_ray_serves_own_pages_name_no_model(http: httpx.Client) -> None:
    """HAProxy answers them, before anything of ours sees them."""
    assert http.get("/-/healthz").text == "success"
    assert http.get("/-/routes").json() == {"/": "ballast"}


def test_health_and_readiness_need_no_key(server: Server) -> None:
    for path in ("/health", "/ready"):
        assert httpx.get(f"{server.url}{path}", trust_env=False).status_code == 200


def test_the_admin_port_serves_nothing_public_and_the_public_port_nothing_of_the_admin(server: Server) -> None:
    assert httpx.get(f"{server.admin_url}/v1/models", trust_env=False).status_code == 404
    assert httpx.get(f"{server.url}/admin/status", trust_env=False).status_code == 404
