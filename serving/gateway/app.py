"""The gateway's ASGI app: find the route, authenticate, answer or pass on, record."""

import asyncio
import logging
import re
import secrets
import time

import orjson

from serving.clock import Clock
from serving.config.limits import Limits
from serving.errors import ApiError, InternalError, MethodNotAllowed
from serving.gateway import metering
from serving.gateway.auth import Authenticator
from serving.gateway.body import Headers, check_headers, header
from serving.gateway.catalog import Catalog
from serving.gateway.exchange import ClientGone, Exchange
from serving.gateway.inference import Inference
from serving.gateway.routes import Page, allowed_methods, dialect_of, find_route
from serving.protocol.asgi import Receive, Scope, Send
from serving.protocol.openai import error_body, error_headers
from serving.telemetry import metrics
from serving.telemetry.logs import RequestLog

logger = logging.getLogger("ballast.gateway")

INTERNAL_ERROR = "internal error; give the x-request-id to the operator"
_CLIENT_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Gateway:
    """What a request meets first. Everything it needs is handed in; it owns no task and no socket."""

    def __init__(
        self,
        limits: Limits,
        catalog: Catalog,
        inference: Inference,
        authenticator: Authenticator,
        clock: Clock,
        log: RequestLog,
        usd_per_token: metering.Price = metering.no_price,
    ) -> None:
        self._limits = limits
        self._catalog = catalog
        self._inference = inference
        self._authenticator = authenticator
        self._clock = clock
        self._log = log
        self._usd_per_token = usd_per_token
        self.is_ready = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _begin(scope)
        metrics.IN_FLIGHT.inc()
        try:
            await self._serve(exchange, scope, receive, send)
        except ApiError as error:
            await _refuse(exchange, error, scope["path"], send)
        except ClientGone:
            exchange.is_client_gone = True
        except asyncio.CancelledError:
            exchange.is_client_gone = True
            raise
        except Exception:  # the top of the process: a bug of ours is a logged 500 in our shape, not a broken connection
            logger.exception("request %s", exchange.request_id)
            await _refuse(exchange, InternalError(INTERNAL_ERROR), scope["path"], send)
        finally:
            metrics.IN_FLIGHT.dec()
            metering.record(exchange, time.monotonic(), self._log, self._usd_per_token)

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
    client_id = header(scope["headers"], b"x-request-id")
    return Exchange(
        request_id=f"req-{secrets.token_hex(16)}",
        client_request_id=client_id.decode() if client_id and _CLIENT_REQUEST_ID.fullmatch(client_id) else None,
        method=scope["method"],
        route="other",
        dialect=dialect_of(scope["path"]),
        arrived_s=time.monotonic(),
    )


async def _refuse(exchange: Exchange, error: ApiError, path: str, send: Send) -> None:
    exchange.error_code = error.code
    if exchange.is_response_started:
        return
    headers = error_headers(error)
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(allowed_methods(path)).encode()))
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
