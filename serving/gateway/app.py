"""The gateway's ASGI app: find the route, authenticate, answer or pass on, record."""

import asyncio
import logging
import re
import time

import orjson

from serving.clock import Clock
from serving.edge.middleware import CLIENT_REQUEST_ID_KEY, REQUEST_ID_KEY, SEND_KEY, new_request_id
from serving.errors import ApiError, InternalError
from serving.gateway import metering
from serving.gateway.auth import Authenticator
from serving.gateway.body import Headers, check_headers, header
from serving.gateway.catalog import Catalog
from serving.gateway.exchange import ClientGone, Exchange
from serving.gateway.inference import Inference
from serving.gateway.routes import Page, dialect_of, find_route
from serving.config.limits import Limits
from serving.protocol.asgi import Receive, Scope, Send
from serving.protocol.openai import error_body, error_headers
from serving.telemetry import metrics

logger = logging.getLogger("ballast.gateway")

_CLIENT_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Gateway:
    """What a request meets first. Everything it needs is handed in; it owns no task and no socket."""

    def __init__(
        self, limits: Limits, catalog: Catalog, inference: Inference, authenticator: Authenticator, clock: Clock
    ) -> None:
        self._limits = limits
        self._catalog = catalog
        self._inference = inference
        self._authenticator = authenticator
        self._clock = clock
        self.is_ready = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _begin(scope)
        send = scope.get(SEND_KEY, send)
        metrics.IN_FLIGHT.inc()
        try:
            await self._serve(exchange, scope, receive, send)
        except ApiError as error:
            await _refuse(exchange, error, send)
        except ClientGone:
            exchange.is_client_gone = True
        except asyncio.CancelledError:
            exchange.is_client_gone = True
            raise
        except Exception:  # the top of the process: a bug of ours is a logged 500 in our shape, not a broken connection
            logger.exception("request %s", exchange.request_id)
            await _refuse(exchange, InternalError("internal error; give the x-request-id to the operator"), send)
        finally:
            metrics.IN_FLIGHT.dec()
            metering.record(exchange, time.monotonic())

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        check_headers(headers, self._limits.max_headers, self._limits.max_header_bytes)
        route = find_route(scope["method"], scope["path"])
        exchange.route = route.path
        if route.target is Page.HEALTH:
            await _answer(exchange, 200, {"status": "ok"}, send)
            return
        if route.target is Page.READY:
            await _answer(
                exchange, *((200, {"status": "ready"}) if self.is_ready else (503, {"status": "not ready"})), send
            )
            return
        identity = self._authenticator.authenticate(headers, self._clock.now_s())
        exchange.key_id = identity.key_id
        if route.target is Page.MODELS:
            await _answer(exchange, 200, self._catalog.as_list(identity), send)
        elif route.target is Page.MODEL:
            await _answer(exchange, 200, self._catalog.as_object(route.argument, identity), send)
        else:
            await self._inference.serve(exchange, route.target, identity, headers, receive, send)


def _begin(scope: Scope) -> Exchange:
    client_id = scope.get(CLIENT_REQUEST_ID_KEY) or header(scope["headers"], b"x-client-request-id")
    return Exchange(
        request_id=scope.get(REQUEST_ID_KEY) or new_request_id(),
        client_request_id=client_id.decode() if client_id and _CLIENT_REQUEST_ID.fullmatch(client_id) else None,
        method=scope["method"],
        route="other",
        dialect=dialect_of(scope["path"]),
        arrived_s=time.monotonic(),
    )


async def _refuse(exchange: Exchange, error: ApiError, send: Send) -> None:
    exchange.error_code = error.code
    if exchange.is_response_started:
        return
    headers = error_headers(error)
    if exchange.method == "POST" and not exchange.is_body_read:
        headers.append((b"connection", b"close"))  # or the server would go on receiving a body that nobody wants
    await _respond(exchange, error.answer.status, error_body(error, exchange.dialect), headers, send)


async def _answer(exchange: Exchange, status: int, value: object, send: Send) -> None:
    await _respond(exchange, status, orjson.dumps(value), [], send)


async def _respond(exchange: Exchange, status: int, body: bytes, extra: Headers, send: Send) -> None:
    exchange.is_response_started = True
    exchange.status = status
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", exchange.request_id.encode()),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if exchange.method == "HEAD" else body, "more_body": False})
