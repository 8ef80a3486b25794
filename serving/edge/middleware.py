"""The outermost layer of a gateway's HTTP server: stands before Ray Serve's own code, which trusts headers we do not.

Ray Serve echoes the client's ``x-request-id``, lets headers set timeouts and routing, fails on header bytes that are not UTF-8,
and wraps ``send`` several times. Here the request gets an id of ours, Ray's own header names are dropped, and the server's
plain ``send`` is handed to the gateway past the wrappers. Installed by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``.
"""

import secrets

from starlette.middleware import Middleware

from serving.protocol.asgi import AsgiApp, Receive, Scope, Send

REQUEST_ID_KEY = "ballast.request_id"
CLIENT_REQUEST_ID_KEY = "ballast.client_request_id"
SEND_KEY = "ballast.send"

#: Headers that Ray Serve acts on, in lower case, and prefixes of such.
_RAY_HEADERS = frozenset(
    {b"x-request-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id"}
)
_RAY_PREFIXES = (b"serve_", b"serve-", b"x-serve-", b"x-ray-", b"ray-serve")


class EdgeMiddleware:
    """ASGI middleware; see the module."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request_id = new_request_id()
            client_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
            headers = [entry for entry in scope["headers"] if not _is_rays(entry[0])]
            headers.append((b"x-request-id", request_id.encode()))
            scope["headers"] = headers
            scope[REQUEST_ID_KEY] = request_id
            scope[CLIENT_REQUEST_ID_KEY] = client_id
            scope[SEND_KEY] = send
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # nothing here speaks it: the handshake is answered 403
            return
        await self._app(scope, receive, send)


def new_request_id() -> str:
    """128 random bits: unguessable, unique without coordination."""
    return f"req-{secrets.token_hex(16)}"


def middlewares() -> list[Middleware]:
    """What Ray Serve calls to learn of this module."""
    return [Middleware(EdgeMiddleware)]


def _is_rays(name: bytes) -> bool:
    return name in _RAY_HEADERS or name.startswith(_RAY_PREFIXES)
