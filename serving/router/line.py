"""Where the requests of one model wait in a gateway, and who of them is next.

A request waits while no replica is open to it (`choice.choose`). Waiting here rather than inside an engine keeps the
choice of replica open until the last moment, and lets requests overtake each other where that is fair:

- Requests that can still meet their deadline come before late ones, and those before batch.
- Among tenants, the one that was served least comes first (virtual token counters: Sheng et al., "Fairness in Serving
  Large Language Models", OSDI '24). A tenant that comes back after a pause starts level with those that wait.
- Of one tenant's requests, the one with the earliest deadline.
- A flood leaves some slots free for the others (`Reserve`).

The line is bounded, and so is a request's time in it. Where it is full, the tenant with most in it gives way.
"""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from serving.errors import EngineUnavailable, Overloaded, RateLimited
from serving.router.choice import Hold, Rules, ahead_s, choose
from serving.router.replica import Replica
from serving.router.reserve import Reserve
from serving.router.waiting import FairQueue, Waiting

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0
_NONE_COMING_S = 10.0
_LONGEST_HEEDED_S = 120.0
"""The openai client does not come back at all when told to wait for longer."""
_JITTER = 0.25
_HEARD_WITHIN_S = 10.0
_MOST_TURNED_AWAY = 1000
_RATE_S = 10.0
"""The drain rate is a mean over about this long."""
_NUM_SCANNED = 16


class Line:
    """The line of one model.

    Args:
        rules: for `choose`.
        max_waiting: bound on the line.
        timeout_s: how long a request may wait.
        coming_s: seconds until a replica could be ready, told whether one of a fallback pool counts; None: none can
            start; NaN: nobody knows.
        reserve: what a flood leaves to others.
    """

    def __init__(
        self,
        rules: Rules,
        max_waiting: int,
        timeout_s: float,
        coming_s: Callable[[bool], float | None] = lambda _: math.nan,
        reserve: Reserve | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._coming_s = coming_s
        self._reserve = reserve or Reserve()
        self._rng = rng or random.Random()
        self._clock = clock
        self._accounts: dict[str, float] = {}
        self._in_time, self._late, self._batch = self._classes = tuple(FairQueue(self._accounts) for _ in range(3))
        self._is_closed = False
        self._turned_away: deque[tuple[float, int]] = deque(maxlen=_MOST_TURNED_AWAY)
        self._sent_per_s = 0.0
        self._sent_at_s = clock()

    @property
    def num_waiting(self) -> int:
        return self._in_time.num_waiting + self._late.num_waiting + self._batch.num_waiting

    @property
    def late(self) -> Iterator[Waiting]:
        return iter(self._late)

    @property
    def num_late(self) -> int:
        return self._late.num_waiting

    @property
    def turned_away(self) -> list[int]:
        """Prompt tokens of each request that was refused a moment ago because nothing is up that may serve it, though
        something could be started. For long enough that the autoscaler hears of it, however it lost its count."""
        since_s = self._clock() - _HEARD_WITHIN_S
        while self._turned_away and self._turned_away[0][0] < since_s:
            self._turned_away.popleft()
        return [prompt_tokens for _, prompt_tokens in self._turned_away]

    def passes(self, waiting: Waiting) -> bool:
        """Send ``waiting`` at once if nobody is before it and a replica is open to it; False: it has to ``wait``.

        Raises Overloaded, where what would be late is refused, EngineUnavailable, where the line is closed, and what
        ``waiting.send`` raises.
        """
        if self._is_closed:
            raise self._stopping()
        self._reserve.on_seen(waiting.tenant, self._clock())
        if not self._is_anyone_before(waiting):
            return not self._is_held_back(waiting) and self._place(waiting)
        return not waiting.is_batch and not waiting.is_late and self._jumps(waiting)

    async def wait(self, waiting: Waiting) -> None:
        """Wait until ``waiting.send`` was called.

        Raises Overloaded (the line is full, or its time is up), RateLimited (it is full of its own tenant's requests),
        EngineUnavailable (there is no replica, and none will be ready in time; or the line is closed), and what
        ``waiting.send`` raises.
        """
        if self._is_closed:
            raise self._stopping()
        if self._coming_in_time(waiting) is None:
            raise self._nobody(waiting)
        self._admit(waiting)
        self._class_of(waiting).add(waiting)
        waiting.done = done = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(max(0.0, waiting.arrived_s + self._timeout_s - self._clock())):
                await done
        except TimeoutError:
            if done.cancelled():  # else it was sent, or refused, in the same turn of the event loop
                raise self._expired(waiting) from None
            done.result()
        finally:
            waiting.done = None
            for each in self._classes:
                each.remove(waiting)

    def end(self, waiting: Waiting) -> None:
        """What was sent is over. Call for each request; it need not have been sent."""
        if waiting.is_sent:
            waiting.is_sent = False
            self._reserve.on_end(waiting.tenant)

    def pump(self) -> None:
        """Send what can be sent now. Call when a replica's load or the set of replicas has changed."""
        held_back = None
        for each in self._classes:
            while (waiting := each.first(besides=held_back)) is not None:
                if self._is_held_back(waiting):
                    held_back = waiting.tenant
                elif not self._try(waiting, each):
                    self._scan(waiting)
                    return

    def tick(self) -> None:
        """Call about twice a second: requests whose help will not come are told so."""
        self._reserve.tick(self._clock())
        if self.num_waiting:
            self.pump()
            for waiting in [*self._in_time, *self._late, *self._batch]:
                if waiting.done is not None and not waiting.done.done() and self._coming_in_time(waiting) is None:
                    waiting.done.set_exception(self._nobody(waiting))

    def close(self) -> None:
        """This gateway stops: all that still wait, and who comes after them, are told to ask another one."""
        self._is_closed = True
        for waiting in [*self._in_time, *self._late, *self._batch]:
            self._fail(waiting, self._stopping())

    # ------------------------------------------------------------------------------------------------------- admission

    def _admit(self, waiting: Waiting) -> None:
        """Make room for ``waiting``: where the line is full, the tenant with most in it gives way, with its newest
        request of the last class. A tenant's batch requests give way to its others.

        Raises RateLimited where that is ``waiting`` itself and others wait too, Overloaded where its tenant is alone.
        """
        self._level(waiting.tenant)
        if self.num_waiting < self._max_waiting:
            return
        shares = {waiting.tenant: 0} | self._shares()
        biggest = max(shares, key=lambda tenant: shares[tenant])
        if shares[biggest] <= shares[waiting.tenant] + 1:
            biggest = waiting.tenant
            if waiting.is_batch or not self._batch.num_of(biggest):
                raise self._full(shares, biggest)
        newest = next(each.last(biggest) for each in reversed(self._classes) if each.num_of(biggest))
        self._class_of(newest).remove(newest)
        self._fail(newest, self._full(shares, biggest))

    def _full(self, shares: dict[str, int], tenant: str) -> RateLimited | Overloaded:
        own, num_waiting = shares[tenant], sum(shares.values())
        if len(shares) > 1 and own > num_waiting / len(shares):
            return RateLimited(
                f"{own} of your requests are waiting already, more than your share of the line",
                retry_after_s=self._retry_after_s(own),
            )
        return Overloaded(f"{num_waiting} requests are waiting already", retry_after_s=self._retry_after_s(num_waiting))

    def _shares(self) -> dict[str, int]:
        """Requests that wait, by tenant."""
        shares: dict[str, int] = {}
        for each in self._classes:
            for tenant in each.tenants:
                shares[tenant] = shares.get(tenant, 0) + each.num_of(tenant)
        return shares

    def _level(self, tenant: str) -> None:
        """A tenant that has nothing waiting comes back: not with what it saved up while it was away. What was had in an
        earlier crowd is forgotten when that has gone."""
        waiting = {name for each in self._classes for name in each.tenants}
        if not waiting:
            self._accounts.clear()
        if tenant not in waiting:
            least = min((self._accounts[name] for name in waiting if name in self._accounts), default=0.0)
            self._accounts[tenant] = max(self._accounts.get(tenant, 0.0), least)
        if len(self._accounts) > 2 * len(waiting) + 1000:
            for name in [name for name in self._accounts if name not in waiting and name != tenant]:
                del self._accounts[name]

    def _coming_in_time(self, waiting: Waiting) -> float | None:
        """None: nobody is there to serve it, and nobody will be before its time is up."""
        if any(replica.is_ready for replica in waiting.replicas()):
            return 0.0
        coming_s = self._coming_s(waiting.allows_fallback)
        left_s = waiting.arrived_s + self._timeout_s - self._clock()
        return None if coming_s is None or coming_s > left_s else coming_s

    def _nobody(self, waiting: Waiting) -> EngineUnavailable:
        coming_s = self._coming_s(waiting.allows_fallback)
        if coming_s is None:
            message = "no replica of this model is up, and none can start now"
            return EngineUnavailable(message, retry_after_s=self._spread(_NONE_COMING_S))
        if math.isnan(coming_s):
            message = "no replica of this model is ready"
            return EngineUnavailable(message, retry_after_s=self._spread(MIN_RETRY_AFTER_S))
        self._turned_away.append((self._clock(), waiting.prompt_tokens))
        when = f"in {coming_s:.0f} s" if coming_s >= 1.0 else "any moment"
        return EngineUnavailable(
            f"no replica of this model is up; the next is expected {when}",
            retry_after_s=min(self._spread(max(coming_s, MIN_RETRY_AFTER_S)), _LONGEST_HEEDED_S),
        )

    def _expired(self, waiting: Waiting) -> Overloaded | EngineUnavailable:
        if not any(replica.is_ready for replica in waiting.replicas()):
            return self._nobody(waiting)
        return Overloaded(
            f"no replica was free for {self._timeout_s:g} s", retry_after_s=self._retry_after_s(self.num_waiting)
        )

    def _retry_after_s(self, num_before: int) -> float:
        """When so many will have been served, at the present rate; spread, so that not all come back at once."""
        rate_per_s = self._sent_per_s * math.exp(-(self._clock() - self._sent_at_s) / _RATE_S)
        wait_s = num_before / rate_per_s if rate_per_s > 0.0 else MAX_RETRY_AFTER_S
        return self._spread(min(max(wait_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S))

    def _spread(self, wait_s: float) -> float:
        return wait_s * (1.0 + _JITTER * self._rng.random())

    # --------------------------------------------------------------------------------------------------------- sending

    def _is_anyone_before(self, waiting: Waiting) -> bool:
        """In its own class, or in one that comes before it; who is held back is before nobody else."""
        place = self._classes.index(self._class_of(waiting))
        tenants = {tenant for each in self._classes[: place + 1] for tenant in each.tenants}
        if len(tenants) == 1 and waiting.tenant not in tenants:
            first = next(first for each in self._classes if (first := each.first()) is not None)
            return not self._is_held_back(first)
        return bool(tenants)

    def _class_of(self, waiting: Waiting) -> FairQueue:
        if waiting.is_late:
            return self._late
        return self._batch if waiting.is_batch else self._in_time

    def _choose(self, waiting: Waiting, ahead_s: float = 0.0) -> Replica | Hold:
        return choose(waiting, waiting.replicas(), self._clock(), self._rng.random(), self._rules, ahead_s)

    def _is_held_back(self, waiting: Waiting) -> bool:
        """Whether its tenant leaves what is free to others. There is never more than one such tenant."""
        num_own = sum(each.num_of(waiting.tenant) for each in self._classes)
        return self._reserve.holds_back(waiting.tenant, num_own, self.num_waiting, waiting.replicas())

    def _place(self, waiting: Waiting) -> bool:
        """Whether the first of the line could be sent. If not it is late from now on, or still in time."""
        found = self._choose(waiting)
        if found is Hold.LATE:
            self._be_late(waiting)
            found = Hold.WAIT if self._is_anyone_before(waiting) else self._choose(waiting)
        if found is Hold.REFUSE:
            raise self._refused()
        if isinstance(found, Hold):
            return False
        self._send(waiting, found)
        return True

    def _try(self, waiting: Waiting, each: FairQueue) -> bool:
        """Whether the first of ``each`` has left it."""
        found = self._choose(waiting)
        if found is Hold.WAIT:
            return False
        each.remove(waiting)
        if not isinstance(found, Hold):
            self._send(waiting, found)
        elif found is Hold.REFUSE:
            self._fail(waiting, self._refused())
        else:
            self._be_late(waiting)
            self._late.add(waiting)
        return True

    def _jumps(self, waiting: Waiting) -> bool:
        """Whether a fallback replica serves it at once, though others wait for a primary one."""
        if not waiting.allows_fallback:
            return False
        replicas = waiting.replicas()
        if not any(replica.is_fallback and replica.is_ready for replica in replicas):
            return False
        line = self._in_time
        found = self._choose(
            waiting, ahead_s(line.prompt_tokens, line.num_waiting, waiting.expected_output_tokens, replicas)
        )
        if isinstance(found, Hold) or not found.is_fallback:
            return False
        self._send(waiting, found)
        return True

    def _scan(self, first: Waiting) -> None:
        """The ``first`` in line must wait; others near the front of each class may be for a fallback replica."""
        for each in self._classes:
            for waiting in list(islice(each.front(), _NUM_SCANNED)):
                if waiting is not first and self._jumps(waiting):
                    each.remove(waiting)

    def _send(self, waiting: Waiting, replica: Replica) -> None:
        if waiting.done is not None and waiting.done.done():
            return  # its client has left, or its time is up; its task has not run since
        now_s = self._clock()
        gap_s = max(1e-6, now_s - self._sent_at_s)
        fade = math.exp(-gap_s / _RATE_S)
        self._sent_per_s = self._sent_per_s * fade + 1.0 / _RATE_S
        self._sent_at_s = now_s
        if self.num_waiting:
            self._accounts[waiting.tenant] = self._accounts.get(waiting.tenant, 0.0) + waiting.tokens
        try:
            waiting.send(replica)
        except Exception as error:
            if waiting.done is None:
                raise
            self._fail(waiting, error)
            return
        if not waiting.is_sent:  # else it is sent again, after a replica was lost
            waiting.is_sent = True
            self._reserve.on_sent(waiting.tenant, now_s)
        if waiting.done is not None and not waiting.done.done():
            waiting.done.set_result(None)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        if waiting.done is not None and not waiting.done.done():
            waiting.done.set_exception(error)

    def _be_late(self, waiting: Waiting) -> None:
        waiting.is_late = True
        waiting.on_late()

    def _stopping(self) -> EngineUnavailable:
        return EngineUnavailable("this server is stopping", retry_after_s=self._spread(MIN_RETRY_AFTER_S))

    def _refused(self) -> Overloaded:
        return Overloaded(
            "the first token could not be there in time; this model refuses what would be late",
            retry_after_s=self._retry_after_s(max(1, self.num_waiting)),
        )
