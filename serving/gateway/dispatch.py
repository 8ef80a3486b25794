"""A request's way to a replica, and to another one when the first breaks."""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from serving.errors import ApiError, EngineUnavailable, Overloaded, Quarantined, ReplicaLost, ReplicaSilent
from serving.gateway.auth import Identity
from serving.gateway.dispatcher import MAX_DEATHS, Dispatcher
from serving.gateway.endpoint import Endpoint
from serving.gateway.exchange import ClientGone, Exchange
from serving.gateway.json_body import serialise
from serving.gateway.request import ValidRequest
from serving.protocol.asgi import Receive
from serving.protocol.frames import OpenHead
from serving.protocol.membership import ReplicaAddress
from serving.router.affinity import prefixes
from serving.router.line import Line
from serving.router.link import ReplicaStream, StreamFailed
from serving.router.replica import Prefill, Replica
from serving.router.waiting import Waiting
from serving.telemetry import metrics

logger = logging.getLogger("ballast.gateway")
audit = logging.getLogger("ballast.audit")

_WORK = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.EMBEDDINGS})
"""What the engine computes for; the others are answered by the tokenizer alone."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. ``salt`` keeps its prompts apart from others' in the engine's cache; ``fingerprint`` is what
    the request is recognised by when it comes again, asked only when engines have died."""

    identity: Identity
    salt: str
    fingerprint: Callable[[], bytes]


class Dispatch:
    """One request's streams, one after the other. ``receive`` is to notice that the client leaves while nothing has
    been sent.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        exchange: Exchange,
        endpoint: Endpoint,
        request: ValidRequest,
        caller: Caller,
        receive: Receive,
    ) -> None:
        self._dispatcher = dispatcher
        self._routes = routes = dispatcher.routes[exchange.model]
        self._exchange = exchange
        self._fingerprint = caller.fingerprint
        self._receive = receive
        self._num_deaths = self._num_failures = 0
        self._replica: Replica | None = None
        self._prefill: Prefill | None = None
        self._stream: ReplicaStream | None = None
        self._is_probe = False
        self._tried: set[str] = set()
        self._body = serialise(request.body)
        self._prefixes = prefixes(request.body, caller.salt)
        self._is_work = endpoint in _WORK
        self._accepted_s = exchange.arrived_s if exchange.accepted_s is None else exchange.accepted_s
        self._prompt_bytes = len(self._body) - _constraint_bytes(request.body)
        self._prompt_tokens = routes.demand.expected_prompt_tokens(self._prompt_bytes) if self._is_work else 0
        if request.max_model_len is not None:  # what is longer is refused by the engine, and must not be waited for
            self._prompt_tokens = min(self._prompt_tokens, request.max_model_len)
        self._output_tokens = routes.demand.expected_output_tokens(request.max_output_tokens) if self._is_work else 0
        self._output_limit = request.max_output_tokens
        self._is_slo_missed = False
        self._pools = self._fallback_pools(caller.identity, request.max_output_tokens if request.is_bounded else None)
        self._waiting = self._place_in_line(request, caller.identity)
        self._head: OpenHead = {
            "method": "POST",
            "path": endpoint.value,
            "request_id": exchange.request_id,
            "model": request.model,
            "created": int(time.time()),
            "continuable": request.stream and request.continuable,
            "resume": [],
            "is_seeded": request.is_seeded,
            "is_constrained": request.is_constrained,
        }

    async def open(self) -> ReplicaStream:
        """The first stream; waits for a replica up to ``limits.queue_timeout_s``.

        Raises Quarantined, Overloaded, RateLimited, EngineUnavailable, ClientGone.
        """
        now_s = time.monotonic()
        self._routes.budget.on_request(now_s)
        if self._is_work:
            self._routes.demand.on_arrival(self._prompt_tokens)
        quarantine = self._dispatcher.quarantine
        if not quarantine.is_empty and quarantine.holds(self._fingerprint(), now_s):
            raise self._quarantined()
        return await self._open_in_turn()

    async def again(self, error: Exception, resume: list[int] | None) -> ReplicaStream:
        """Another stream after one broke with ``error``. ``resume``: the tokens that the client has, if it has any; it
        waits for no replica then, because its client is in the middle of an answer.

        Raises ``error`` where there must not be another, Overloaded, EngineUnavailable, ClientGone.
        """
        now_s = time.monotonic()
        self._num_failures += (has_failed := is_failure(error))
        is_worth_it = _may_be_well_elsewhere(error) and self._num_failures <= MAX_FAILURES
        self._head["resume"] = resume or []
        waits = resume is None and not isinstance(error, ReplicaSilent) and not has_failed
        able = () if waits else self._others()
        # What cannot be moved anyway takes nothing from the budget of what can.
        if not is_worth_it or not (waits or able) or not self._routes.budget.take(now_s):
            raise error
        if waits:
            self._stream, self._waiting.arrived_s = None, now_s
            stream = await self._open_in_turn()
        else:
            stream = self._open_now(able)
        kind = "restarted" if resume is None else "continued"
        metrics.FAILOVERS.labels(self._exchange.model, kind).inc()
        logger.info("request %s %s on replica %s", self._exchange.request_id, kind, self._exchange.replica)
        return stream

    def on_broken(self, error: Exception) -> None:
        """A stream broke; call once for each, whether another one is to take its place or not. Raises Quarantined: too
        many engines have died while they worked on this request."""
        self.settle(error)
        if not _is_death(error):
            return
        self._num_deaths += 1
        self._dispatcher.quarantine.on_death(fingerprint := self._fingerprint(), self._exchange.replica)
        if self._num_deaths >= MAX_DEATHS or self._dispatcher.quarantine.holds(fingerprint, time.monotonic()):
            raise self._quarantined() from error

    @property
    def generation_s(self) -> float:
        """What an answer that comes whole may take after its prompt: as slow as its replica is, and twice that. 0 for
        others."""
        if self._replica is None or self._exchange.is_stream or not self._is_work:
            return 0.0
        limit = self._replica.address.max_model_len if self._output_limit is None else self._output_limit
        return _GENEROUS * limit * self._replica.tpot_s

    def on_first_byte(self) -> None:
        """The answer has begun: its prompt is computed, and its replica is one that answers."""
        if self._replica is not None:
            self._replica.breaker.on_answer(is_probe=self._is_probe)
        self._end_prefill()

    def _end_prefill(self) -> None:
        if self._prefill is not None:
            self._prefill.end()
            self._prefill = None
            self._dispatcher.directory.announce()

    def tick(self, now_s: float) -> None:
        """Call about twice a second: an answer that comes whole does not say when its prompt is done."""
        if self._prefill is not None and now_s > self._prefill.due_s:
            self._end_prefill()

    def settle(self, error: Exception | None) -> None:
        """Tell the breaker of the last replica how its stream ended."""
        self._end_prefill()
        if self._replica is None:
            return
        breaker = self._replica.breaker
        if error is None:
            breaker.on_success(is_probe=self._is_probe)
            if not self._dispatcher.quarantine.is_empty:
                self._dispatcher.quarantine.on_success(self._fingerprint(), time.monotonic())
        elif isinstance(error, ReplicaLost | StreamFailed) and not (_is_moving(error) or is_refusal(error)):
            breaker.on_failure(time.monotonic(), error)
            self._replica.has_dead_engine |= isinstance(error, StreamFailed) and _is_death(error)
        else:
            breaker.on_dropped(is_probe=self._is_probe)
        self._replica.refresh()
        self._dispatcher.directory.announce()

    def finish(self, error: Exception | None, now_s: float) -> None:
        """The request is over, and ``exchange.usage`` says what it has cost."""
        exchange, demand = self._exchange, self._routes.demand
        self._routes.line.end(self._waiting)
        usage = exchange.usage
        if self._replica is not None:
            self._replica.refresh()
        if not self._is_work:
            return
        if isinstance(error, ClientGone):
            # Whoever leaves before the first token says nothing against us, unless it was late already.
            if exchange.first_byte_s is None and now_s > self._waiting.deadline_s:
                self._miss_slo()
            return
        if is_refusal(error):
            return
        if error is None:
            demand.on_finish(self._prompt_bytes, usage["prompt_tokens"], usage["output_tokens"])
        if error is not None or not self._is_slo_met(now_s):
            self._miss_slo()
        elif not self._is_slo_missed and not self._waiting.is_batch:
            self._on_slo(is_met=True)

    # ---------------------------------------------------------------------------------------------------- which replica

    async def _open_in_turn(self) -> ReplicaStream:
        """A stream on the replica of choice, when it is this request's turn."""
        line, waiting = self._routes.line, self._waiting
        try:
            if not line.passes(waiting):
                await self._wait_in_line(line, waiting)
        except (Overloaded, EngineUnavailable):
            if self._is_work:
                self._miss_slo()
            raise
        assert self._stream is not None, "the line has called _send"
        return self._stream

    async def _wait_in_line(self, line: Line, waiting: Waiting) -> None:
        turn = asyncio.ensure_future(line.wait(waiting))
        gone = asyncio.ensure_future(disconnect(self._receive))
        try:
            await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self._stream is not None:
                return  # it may be that the client has left in the same moment: whoever relays will notice
            if not turn.done():
                raise ClientGone("the client left while waiting for a replica")
            turn.result()
        finally:
            turn.cancel()
            gone.cancel()

    def _others(self) -> Sequence[Replica]:
        """The replicas that were not tried yet and may serve this request from where it is now."""
        able = self._able(besides=self._tried)
        return [replica for replica in able if not self._head["resume"] or self._may_continue_on(replica.address)]

    def _open_now(self, able: Sequence[Replica]) -> ReplicaStream:
        """A stream on one of these, whatever line there is."""
        self._send(min(able, key=lambda replica: (replica.is_fallback, replica.backlog_s, replica.num_running)))
        assert self._stream is not None, "_send sets it or raises"
        return self._stream

    def _may_continue_on(self, address: ReplicaAddress) -> bool:
        """Whether the tokens so far mean the same there. While a config is rolled out, pools hold both models."""
        exchange = self._exchange
        if address.pool == exchange.pool:
            return address.version == exchange.version
        return self._replica is None or address.model_version == self._replica.address.model_version

    def _able(self, besides: Container[str] = ()) -> Sequence[Replica]:
        """The replicas that may serve this request now, those of primary pools first. A breaker spares one only while
        there is another that could be asked, now or in a moment (Envoy's panic threshold), or if it does not answer.
        """
        pools = self._pools
        known = [
            replica
            for replica in self._dispatcher.directory.replicas(self._exchange.model)
            if not replica.is_fallback or replica.address.pool in pools
        ]
        able = [replica for replica in known if replica.is_ready and replica.name not in besides]
        if any(replica.breaker.num_failures for replica in able):
            now_s = time.monotonic()
            well = [replica for replica in able if replica.breaker.allows(now_s)]
            if not well and not any(replica.breaker.is_closed and not replica.has_dead_engine for replica in known):
                well = [replica for replica in able if not replica.breaker.is_by_silence]
            able = well
        if len(pools) and len(able) > 1:
            able.sort(key=lambda replica: replica.is_fallback)
        return able

    def _send(self, replica: Replica) -> None:
        """Open the stream on ``replica``. Raises ReplicaLost."""
        address, exchange = replica.address, self._exchange
        exchange.pool, exchange.replica, exchange.version = address.pool, address.replica, address.version
        prompt_tokens = max(1, self._prompt_tokens - self._cached_tokens(replica)) + len(self._head["resume"])
        # What the replica reports as pending must be what is counted here, or the rest counts as other gateways'.
        self._head["prompt_tokens"] = prompt_tokens if self._exchange.is_stream else 0
        self._stream = replica.link.open(self._head, self._body, self._dispatcher.limits.stream_buffer_bytes)
        self._prefill = replica.begin(prompt_tokens, prompt_tokens + round(self._output_tokens), time.monotonic())
        self._is_probe = replica.breaker.on_sent()
        self._replica = replica
        self._tried.add(address.replica)
        if self._is_work:
            self._routes.affinity.sent(self._prefixes, replica.name)
        exchange.fallback = None
        if replica.is_fallback:
            is_primary_up = any(not other.is_fallback for other in self._able())
            exchange.fallback = "too-late-elsewhere" if is_primary_up else "no-primary-replica"

    def _cached_tokens(self, replica: Replica) -> int:
        return self._waiting.cached_tokens if replica.name == self._waiting.home else 0

    def _fallback_pools(self, identity: Identity, limit: int | None) -> frozenset[str]:
        """Which fallback pools may serve this request, whose client wants at most ``limit`` tokens, if it says so."""
        output_tokens = limit if limit is not None and self._is_work else self._output_tokens
        return frozenset(
            pool
            for pool, bounds in self._routes.fallbacks.items()
            if self._prompt_tokens <= bounds.max_prompt_tokens
            and output_tokens <= bounds.max_output_tokens
            and (bounds.keys is None or identity.key_id in bounds.keys)
        )

    def _place_in_line(self, request: ValidRequest, identity: Identity) -> Waiting:
        accepted_s = self._accepted_s
        home = self._routes.affinity.home(self._prefixes)
        return Waiting(
            prompt_tokens=self._prompt_tokens,
            expected_output_tokens=self._output_tokens,
            deadline_s=accepted_s + self._routes.model.slo.ttft_s,
            is_batch=request.is_batch,
            allows_fallback=bool(self._pools),
            tenant=identity.tenant,
            replicas=self._able,
            send=self._send,
            home=home.replica if home else None,
            cached_tokens=self._routes.demand.expected_prompt_tokens(home.num_bytes) if home else 0,
            on_late=lambda: self._on_slo(is_met=False) if self._is_work else None,
            arrived_s=accepted_s,
        )

    # -------------------------------------------------------------------------------------------------- how it went

    def _miss_slo(self) -> None:
        """Once per request; batch is promised nothing."""
        if not self._is_slo_missed and not self._waiting.is_batch:
            self._on_slo(is_met=False)

    def _on_slo(self, is_met: bool) -> None:
        self._is_slo_missed = not is_met
        self._routes.demand.on_slo(is_met)
        metrics.SLO.labels(self._exchange.model, "met" if is_met else "missed").inc()

    def _is_slo_met(self, now_s: float) -> bool:
        exchange, slo = self._exchange, self._routes.model.slo
        num_more = max(0, exchange.usage["output_tokens"] - 1)
        if exchange.first_byte_s is None:
            return True
        if not exchange.is_stream:
            return now_s - exchange.blocked_s - self._accepted_s <= slo.ttft_s + num_more * slo.tpot_s
        is_prompt = exchange.first_byte_s - self._accepted_s <= slo.ttft_s
        took_s = now_s - exchange.blocked_s - exchange.first_byte_s
        return is_prompt and took_s <= num_more * slo.tpot_s + _WRITE_S

    def _quarantined(self) -> Quarantined:
        exchange = self._exchange
        audit.warning(
            "request quarantined",
            extra={"event": "quarantined", "request_id": exchange.request_id, "key": exchange.key_id},
        )
        metrics.QUARANTINED.labels(exchange.model).inc()
        return Quarantined("engines died while they served this request; it is not tried again")


MAX_FAILURES = 1
"""Of engines that live, after which a request goes to another; a second one says that it is the request."""
_CONSTRAINTS = ("response_format", "structured_outputs", "text")
_GENEROUS = 2.0
_WRITE_S = 0.05
"""Between the last token and the end of the answer: its last events."""


def _constraint_bytes(body: Mapping[str, object]) -> int:
    """Of a request's bytes, those that the engine makes no prompt of, and that may be many: schemas of the answer."""
    return sum(len(serialise({name: body[name]})) for name in _CONSTRAINTS if name in body)


async def disconnect(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def is_refusal(error: Exception | None) -> bool:
    """The engine did not take the request, as it must: it says nothing against the engine."""
    if isinstance(error, StreamFailed):
        return error.failure["cause"] == "request"
    return isinstance(error, ApiError) and error.answer.status < 500


def _is_moving(error: Exception) -> bool:
    return isinstance(error, StreamFailed) and error.failure["cause"] == "draining"


def _is_death(error: Exception) -> bool:
    if isinstance(error, StreamFailed):
        return error.failure["cause"] == "engine_dead"
    return isinstance(error, ReplicaLost) and not isinstance(error, ReplicaSilent)


def is_failure(error: Exception) -> bool:
    """Of an engine that lives: at this request, which another one may be able to serve."""
    return isinstance(error, StreamFailed) and error.failure["cause"] == "engine_failed"


def _may_be_well_elsewhere(error: Exception) -> bool:
    return isinstance(error, ReplicaLost | StreamFailed) and not is_refusal(error)
