"""The outermost layer of a gateway's HTTP server: hands requests to the gateway before Ray Serve's own request code.

Ray Serve runs the server, health-checks it and drains it. Its code around each request is left out: it echoes the
client's ``x-request-id``, lets headers set timeouts and routing, fails on header bytes that are not UTF-8, and wraps
every ``send`` three times. Installed by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``.
"""

from starlette.middleware import Middleware

from serving.protocol.asgi import AsgiApp, Receive, Scope, Send

#: Ray Serve's own paths: HAProxy's and the controller's health checks.
_RAY_PATHS = ("/-/healthz", "/-/routes")


class EdgeMiddleware:
    """ASGI middleware that prefers ``EdgeMiddleware.gateway`` to the app it wraps.

    Ray Serve builds the middleware from an import path, so the gateway of this process cannot be an argument; its
    ingress deployment puts it here. With ``is_leaving`` HAProxy's health checks are told to pass this gateway over;
    what comes nevertheless is served.
    """

    gateway: AsgiApp | None = None
    is_leaving = False

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # the server answers 403; nothing here speaks it
        elif self.is_leaving and scope["type"] == "http" and scope["path"] in _RAY_PATHS:
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        elif scope["type"] != "http" or scope["path"] in _RAY_PATHS or self.gateway is None:
            await self._app(scope, receive, send)
        else:
            await self.gateway(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve calls to learn of this module."""
    return [Middleware(EdgeMiddleware)]
