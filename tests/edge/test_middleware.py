"""The outermost layer: requests go to the gateway, health checks and lifespan messages to Ray Serve."""

import pytest

from serving.edge.middleware import EdgeMiddleware, middlewares
from serving.protocol.asgi import Message, Receive, Scope, Send


class App:
    """Keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Scope, Receive, Send]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls.append((scope, receive, send))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> App:
    app = App()
    monkeypatch.setattr(EdgeMiddleware, "gateway", app)
    return app


async def nothing() -> Message:
    return {}


async def ignore(message: Message) -> None:
    pass


async def test_a_request_goes_to_the_gateway_as_it_is(gateway: App) -> None:
    ray, scope = App(), {"type": "http", "path": "/v1/models", "headers": []}
    await EdgeMiddleware(ray)(scope, nothing, ignore)
    assert gateway.calls == [(scope, nothing, ignore)]
    assert ray.calls == []


@pytest.mark.parametrize(
    "scope",
    [{"type": "http", "path": "/-/healthz"}, {"type": "http", "path": "/-/routes"}, {"type": "lifespan"}],
    ids=str,
)
async def test_what_concerns_ray_serve_goes_to_ray_serve(gateway: App, scope: Scope) -> None:
    ray = App()
    await EdgeMiddleware(ray)(scope, nothing, ignore)
    assert ray.calls == [(scope, nothing, ignore)]
    assert gateway.calls == []


async def test_before_there_is_a_gateway_ray_serve_answers() -> None:
    ray = App()
    await EdgeMiddleware(ray)({"type": "http", "path": "/v1/models"}, nothing, ignore)
    assert len(ray.calls) == 1


async def test_a_websocket_is_closed_before_anything_sees_it(gateway: App) -> None:
    ray, sent = App(), []

    async def send(message: Message) -> None:
        sent.append(message)

    await EdgeMiddleware(ray)({"type": "websocket", "headers": []}, nothing, send)
    assert (ray.calls, gateway.calls, sent) == ([], [], [{"type": "websocket.close"}])


def test_ray_serve_is_told_of_it() -> None:
    [middleware] = middlewares()
    assert middleware.cls is EdgeMiddleware


async def test_of_a_gateway_that_is_leaving_only_health_checks_learn(
    gateway: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EdgeMiddleware, "is_leaving", True)
    ray, sent = App(), list[Message]()

    async def send(message: Message) -> None:
        sent.append(message)

    await EdgeMiddleware(ray)({"type": "http", "path": "/-/healthz", "headers": []}, nothing, send)
    assert [message.get("status") for message in sent] == [503, None]
    assert ray.calls == []
    await EdgeMiddleware(ray)({"type": "http", "path": "/v1/models", "headers": []}, nothing, ignore)
    assert len(gateway.calls) == 1
