"""A request's way to a replica, and to another one when the first breaks."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Container

from serving.config.limits import Limits
from serving.errors import EngineUnavailable, Quarantined, ReplicaLost, ReplicaSilent
from serving.gateway.endpoint import Endpoint
from serving.gateway.exchange import ClientGone, Exchange
from serving.gateway.json_body import serialise
from serving.gateway.validate import ValidRequest
from serving.protocol.asgi import Receive
from serving.protocol.frames import OpenHead
from serving.router.directory import Directory, Replica
from serving.router.failover import Quarantine, RetryBudget
from serving.router.link import ReplicaStream, StreamFailed
from serving.router.policy import choose
from serving.telemetry import metrics

logger = logging.getLogger("ballast.gateway")
audit = logging.getLogger("ballast.audit")

RETRY_AFTER_S = 1.0
MAX_DEATHS = 2


class Dispatcher:
    """What the requests of one gateway share: the replicas, and the bounds on failing over."""

    def __init__(self, directory: Directory, limits: Limits) -> None:
        self.directory = directory
        self.limits = limits
        self.rng = random.Random()
        self.budget = RetryBudget(limits.retry_budget_ratio, limits.retry_budget_floor)
        self.quarantine = Quarantine(MAX_DEATHS, limits.quarantine_s)


class Dispatch:
    """One request's streams, one after the other.

    Args:
        fingerprint: what the request is recognised by when it comes again; asked only when engines have died.
        receive: to notice that the client leaves while nothing has been sent.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        exchange: Exchange,
        endpoint: Endpoint,
        request: ValidRequest,
        fingerprint: Callable[[], bytes],
        receive: Receive,
    ) -> None:
        self._dispatcher = dispatcher
        self._exchange = exchange
        self._fingerprint = fingerprint
        self._receive = receive
        self._num_deaths = 0
        self._replica: Replica | None = None
        self._tried: set[str] = set()
        self._body = serialise(request.body)
        self._head: OpenHead = {
            "method": "POST",
            "path": endpoint.value,
            "request_id": exchange.request_id,
            "model": request.model,
            "created": int(time.time()),
            "continuable": request.stream and request.continuable,
            "resume": [],
            "is_constrained": request.is_constrained,
        }

    async def open(self) -> ReplicaStream:
        """The first stream; waits for a replica up to ``limits.queue_timeout_s``.

        Raises Quarantined, EngineUnavailable, ClientGone.
        """
        now_s = time.monotonic()
        self._dispatcher.budget.on_request(now_s)
        quarantine = self._dispatcher.quarantine
        if not quarantine.is_empty and quarantine.holds(self._fingerprint(), now_s):
            raise self._quarantined()
        return await self._open_in_time()

    async def again(self, error: Exception, resume: list[int] | None) -> ReplicaStream:
        """Another stream after one broke with ``error``. ``resume``: the tokens that the client has, if it has any; it
        waits for no replica then, because its client is in the middle of an answer.

        Raises ``error`` where there must not be another, Quarantined, EngineUnavailable, ClientGone.
        """
        now_s = time.monotonic()
        if _is_death(error):
            self._num_deaths += 1
            self._dispatcher.quarantine.on_death(fingerprint := self._fingerprint(), self._exchange.replica, now_s)
            if self._num_deaths >= MAX_DEATHS or self._dispatcher.quarantine.holds(fingerprint, now_s):
                raise self._quarantined() from error
        if not _may_be_well_elsewhere(error) or not self._dispatcher.budget.take(now_s):
            raise error
        self._head["resume"] = resume or []
        if resume is None and not isinstance(error, ReplicaSilent):
            stream = await self._open_in_time()
        elif (found := self._open_now(besides=self._tried)) is not None:
            stream = found
        else:
            raise error
        kind = "restarted" if resume is None else "continued"
        metrics.FAILOVERS.labels(self._exchange.model, kind).inc()
        logger.info("request %s %s on replica %s", self._exchange.request_id, kind, self._exchange.replica)
        return stream

    def settle(self, error: Exception | None) -> None:
        """Tell the breaker of the last replica how its stream ended."""
        if self._replica is None:
            return
        breaker = self._replica.breaker
        if error is None:
            breaker.on_success()
            if not self._dispatcher.quarantine.is_empty:
                self._dispatcher.quarantine.on_success(self._fingerprint())
        elif isinstance(error, ReplicaLost | StreamFailed) and not _is_moving(error):
            breaker.on_failure(time.monotonic())
            self._replica.has_dead_engine |= isinstance(error, StreamFailed) and _is_death(error)
        else:
            breaker.on_dropped()

    async def _open_in_time(self) -> ReplicaStream:
        deadline_s = time.monotonic() + self._dispatcher.limits.queue_timeout_s
        while (stream := self._open_now()) is None:
            if not await self._replicas_changed(deadline_s - time.monotonic()):
                raise EngineUnavailable(f"no replica of '{self._exchange.model}' is ready", retry_after_s=RETRY_AFTER_S)
        return stream

    def _open_now(self, besides: Container[str] = ()) -> ReplicaStream | None:
        """A stream on the replica of choice, if one that is not in ``besides`` can take it."""
        now_s = time.monotonic()
        able = [
            replica
            for replica in self._dispatcher.directory.replicas(self._exchange.model)
            if replica.is_ready and replica.address.replica not in besides and replica.breaker.allows(now_s)
        ]
        replica = choose(able, self._dispatcher.rng)
        if replica is None:
            return None
        address, exchange = replica.address, self._exchange
        exchange.pool, exchange.replica, exchange.version = address.pool, address.replica, address.version
        stream = replica.link.open(self._head, self._body, self._dispatcher.limits.stream_buffer_bytes)
        replica.breaker.on_sent()
        self._replica = replica
        self._tried.add(address.replica)
        return stream

    async def _replicas_changed(self, timeout_s: float) -> bool:
        """Wait for another state of the replicas; False after ``timeout_s``. Raises ClientGone when the client leaves
        meanwhile.
        """
        change = asyncio.create_task(self._dispatcher.directory.changed(timeout_s))
        gone = asyncio.create_task(disconnect(self._receive))
        try:
            await asyncio.wait({change, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientGone("the client left while waiting for a replica")
            return change.result()
        finally:
            change.cancel()
            gone.cancel()

    def _quarantined(self) -> Quarantined:
        exchange = self._exchange
        audit.warning(
            "request quarantined",
            extra={"event": "quarantined", "request_id": exchange.request_id, "key": exchange.key_id},
        )
        metrics.QUARANTINED.labels(exchange.model).inc()
        return Quarantined("engines died while they served this request; it is not tried again")


async def disconnect(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_moving(error: Exception) -> bool:
    return isinstance(error, StreamFailed) and error.failure["cause"] == "draining"


def _is_death(error: Exception) -> bool:
    if isinstance(error, StreamFailed):
        return error.failure["cause"] == "engine_dead"
    return isinstance(error, ReplicaLost) and not isinstance(error, ReplicaSilent)


def _may_be_well_elsewhere(error: Exception) -> bool:
    return isinstance(error, ReplicaLost) or (isinstance(error, StreamFailed) and error.failure["cause"] != "request")
