"""The way of an inference request: read, check, choose a replica, relay the answer."""

import time
from pathlib import Path

from serving.config import Config
from serving.gateway.auth import Authenticator, Identity
from serving.gateway.body import Headers, check_media, read_body
from serving.gateway.catalog import Catalog, check_task
from serving.gateway.dispatch import Caller, Dispatch
from serving.gateway.dispatcher import Coming, Dispatcher, nobody_knows
from serving.gateway.endpoint import Endpoint
from serving.gateway.exchange import Exchange
from serving.gateway.json_body import canonical, parse
from serving.gateway.relay import Relay, Timing
from serving.gateway.room import Room
from serving.gateway.validate import RequestContext, ValidRequest, validate
from serving.protocol.asgi import Receive, Send
from serving.protocol.stats import Stats
from serving.router.directory import Directory


class Inference:
    """Serves the POST endpoints. One per gateway process, on its event loop.

    ``deaths_path``: see `SharedQuarantine`.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        directory: Directory,
        authenticator: Authenticator,
        deaths_path: Path,
        coming: Coming = nobody_knows,
    ) -> None:
        self._limits = config.limits
        self._catalog = catalog
        self._dispatcher = Dispatcher(directory, config, deaths_path, coming)
        self._authenticator = authenticator
        self._relays: set[Relay] = set()
        self._room = Room(config.limits.max_concurrent_requests, config.limits.max_bytes_in_flight)
        self._timing = Timing(
            keep_alive_s=config.server.keep_alive_s,
            first_byte_timeout_s=config.limits.first_byte_timeout_s,
            inter_chunk_timeout_s=config.limits.inter_chunk_timeout_s,
            slow_reader_timeout_s=config.limits.slow_reader_timeout_s,
            max_request_s=config.limits.max_request_s,
        )

    async def serve(
        self, exchange: Exchange, endpoint: Endpoint, identity: Identity, headers: Headers, receive: Receive, send: Send
    ) -> None:
        """Raises ApiError while nothing has been sent."""
        with self._room.place(identity.tenant) as place:
            check_media(headers, self._limits.max_body_bytes)
            body = await read_body(receive, self._limits.max_body_bytes, self._limits.body_timeout_s, place.add)
            exchange.is_body_read = True
            # The parsed request is three times its bytes: nothing may hold it while the answer is made.
            dispatch = self._dispatch(
                exchange, endpoint, self._check(exchange, endpoint, identity, body), identity, body, receive
            )
            stream = await dispatch.open()
            exchange.sent_s = time.monotonic()
            await self._relay(Relay(exchange, dispatch, stream, receive, send, self._timing))

    @property
    def num_in_flight(self) -> int:
        return self._room.num_requests

    def stats(self) -> Stats:
        """What the autoscaler is told."""
        return self._dispatcher.stats()

    def tick(self, now_s: float, stood_still_s: float = 0.0) -> None:
        """Call about twice a second; ``stood_still_s``: for how long too late, because this process stood still."""
        self._dispatcher.tick()
        for relay in list(self._relays):
            relay.tick(now_s, stood_still_s)

    def end_all(self) -> None:
        """The gateway's time is up: answers that have begun end with an error event, the other requests with a 503."""
        self._dispatcher.close()
        for relay in list(self._relays):
            relay.end()

    def _check(self, exchange: Exchange, endpoint: Endpoint, identity: Identity, body: bytes) -> ValidRequest:
        """What may go to the engine. Raises ApiError subclasses for everything that may not."""
        fields = parse(body, self._limits)
        name = fields.get("model")
        model = self._catalog.find(name, identity) if isinstance(name, str) else None
        if model is not None:
            check_task(model, endpoint)
        context = RequestContext(
            max_model_len=self._catalog.max_model_len(model) if model else None,
            cache_salt=self._authenticator.cache_salt(identity),
            request_id=exchange.request_id,
            chat_template_kwargs=frozenset(model.chat_template_kwargs if model else ()),
        )
        request = validate(endpoint, fields, self._limits, context)
        assert model is not None, "validate() refuses a request without a model name"
        exchange.model = model.name
        exchange.is_stream = request.stream
        exchange.accepted_s = time.monotonic()
        return request

    def _dispatch(
        self,
        exchange: Exchange,
        endpoint: Endpoint,
        request: ValidRequest,
        identity: Identity,
        body: bytes,
        receive: Receive,
    ) -> Dispatch:
        def fingerprint() -> bytes:
            return self._authenticator.fingerprint(identity, endpoint.value.encode() + canonical(body))

        caller = Caller(identity, self._authenticator.cache_salt(identity), fingerprint)
        return Dispatch(self._dispatcher, exchange, endpoint, request, caller, receive)

    async def _relay(self, relay: Relay) -> None:
        self._relays.add(relay)
        try:
            await relay.run()
        finally:
            self._relays.discard(relay)
