"""One policy, one trace, one seed: an event-driven run of gateway, router, replicas and autoscaler.

Requests are routed by the production `choose`. A request that no replica is open to waits in the gateway, earliest
deadline first; one whose deadline is lost waits behind all that can still make theirs (or is refused, with shedding
on). The policy is asked every `Scenario.decision_interval_s`. A replica asked for is billed at once and ready after a
cold start drawn from the scenario's distribution. Scaling down gives up starting replicas first, youngest first, then
those with least left to do, which finish what they have.

Billing ends with the last arrival; what is in flight then still finishes and counts.
"""

import math
import random
import time
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from math import inf

from benchmarks.simulator.fleet import Policy, PoolView, View
from benchmarks.simulator.outcome import Outcome, Sample
from benchmarks.simulator.replica import SimReplica, SimRequest
from benchmarks.simulator.scenario import Pool, Scenario
from benchmarks.simulator.trace import Trace
from serving.router.choice import Hold, Rules, ahead_s, choose

_WAIT = Hold.WAIT
_AFTER_S = 900.0
"""How long what is in flight at the end may take."""
_SCAN = 16
"""How far behind a request that must wait for a primary pool the gateway looks for one that a fallback pool can
take."""


def simulate(
    scenario: Scenario,
    trace: Trace,
    policy: Policy,
    seed: int = 0,
    *,
    keep_timeline: bool = False,
    has_plain_router: bool = False,
) -> Outcome:
    """Run ``trace`` through the fleet under ``policy``. Same arguments, same outcome.

    ``has_plain_router``: instead of `choose`, what Ray Serve does by itself: the less busy of two replicas drawn at
    random, first come first served, whether or not a deadline can still be met.
    """
    simulation = _Simulation(scenario, trace, policy, seed, keep_timeline)
    simulation.has_plain_router = has_plain_router
    return simulation.run()


@dataclass(slots=True)
class _PoolState:
    """One pool of the simulated fleet, and its account."""

    config: Pool
    ready: list[SimReplica]
    starting: list[SimReplica]
    draining: list[SimReplica]
    max_replicas: int
    new_cold_starts_s: list[float]
    gone_hours: float = 0.0
    ready_hours: float = 0.0
    busy_hours: float = 0.0
    num_served: int = 0
    num_starts: int = 0
    num_stops: int = 0
    num_aborted: int = 0
    num_made: int = 0
    counted: tuple[float, ...] = (0.0,) * 5
    """Work of all its replicas, gone ones included, up to the last decision."""
    gone_work: tuple[float, ...] = (0.0,) * 5


class _Simulation:
    def __init__(self, scenario: Scenario, trace: Trace, policy: Policy, seed: int, keep_timeline: bool) -> None:
        self._scenario = scenario
        self._trace = trace
        self._policy = policy
        self._random = random.Random(seed)
        self._keep_timeline = keep_timeline
        self.has_plain_router = False
        self._rules = Rules(tpot_slo_s=scenario.slo.tpot_s, is_shedding=scenario.is_shedding)
        self._pools = [_PoolState(pool, [], [], [], pool.replicas.max, []) for pool in scenario.pools]
        self._open: list[SimReplica] = []  # every ready replica, primary pools first
        self._heap: list[tuple[float, int, SimReplica]] = []
        self._starts: list[tuple[float, int, SimReplica]] = []
        self._sequence = 0
        self._now_s = 0.0
        self._queue: deque[SimRequest] = deque()
        self._late: deque[SimRequest] = deque()
        self._arrived: list[SimRequest] = []
        self._finished: list[SimRequest] = []
        self._timeline: list[Sample] = []
        self._ttft_s = array("d")
        self._tpot_s = array("d")
        self._num_met = self._num_missed = self._num_refused = 0
        self._num_ttft_missed = self._num_tpot_missed = 0
        self._met_before = self._missed_before = 0
        self._decide_s = 0.0
        self._mean_output_tokens = 100.0
        self._fallbacks = [pool.fallback for pool in scenario.pools if pool.fallback]
        self._ttft_slo_s, self._tpot_slo_s = scenario.slo.ttft_s, scenario.slo.tpot_s

    # ------------------------------------------------------------------------------------------------------ the run

    def run(self) -> Outcome:
        began_s = time.perf_counter()
        for index, pool in enumerate(self._pools):
            for _ in range(pool.config.replicas.initial):
                self._become_ready(self._new_replica(index, 0.0))
        arrivals = self._trace.arrival_s
        num_requests = len(arrivals)
        end_s = self._trace.span_s
        interval_s = self._scenario.decision_interval_s
        last_s = end_s + _AFTER_S
        starts = self._starts
        tick_s, arrival_s, next_index = 0.0, arrivals[0], 0
        while True:
            start_s = starts[0][0] if starts else inf
            now_s = min(arrival_s, start_s, tick_s)
            self._fire_until(min(now_s, last_s))
            if now_s > last_s:
                break
            self._now_s = now_s
            if now_s == arrival_s:
                self._arrive(next_index)
                next_index += 1
                arrival_s = arrivals[next_index] if next_index < num_requests else inf
            elif now_s == start_s:
                self._end_start()
            elif now_s < end_s:
                self._tick(interval_s)
                tick_s = min(end_s, now_s + interval_s)
            else:
                self._bill_rest(end_s)
                tick_s = inf
        return self._outcome(time.perf_counter() - began_s)

    def _fire_until(self, until_s: float) -> None:
        """All steps of replicas that end by then."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            event_s, _, replica = heap[0]
            if replica.event_s != event_s:
                heappop(heap)
                continue  # a request came in between and made its event earlier
            self._now_s = event_s
            replica.fire()
            if replica.event_s < inf:
                self._sequence += 1
                heapreplace(heap, (replica.event_s, self._sequence, replica))
            else:
                heappop(heap)
                if replica.is_draining:
                    self._remove(replica, drained=True)
            if self._queue or self._late:
                self._pump()

    def _arrive(self, index: int) -> None:
        """The next request comes in."""
        trace = self._trace
        prompt_tokens = trace.prompt_tokens[index]
        request = SimRequest(index, self._now_s, prompt_tokens, trace.output_tokens[index], self._ttft_slo_s)
        request.expected_output_tokens = self._mean_output_tokens
        request.allows_fallback = False
        for bounds in self._fallbacks:
            if prompt_tokens <= bounds.max_prompt_tokens and self._mean_output_tokens <= bounds.max_output_tokens:
                request.allows_fallback = True
        self._arrived.append(request)
        if not self._queue or not self._has_primary:
            self._queue.append(request)
            self._pump()
        elif not self._open[-1].is_fallback or self._send(request, self._ahead_s()) is not None:
            self._queue.append(request)

    def _end_start(self) -> None:
        """The next cold start ends."""
        replica = heappop(self._starts)[2]
        pool = self._pools[replica.pool]
        if replica in pool.starting:
            pool.starting.remove(replica)
            pool.new_cold_starts_s.append(self._now_s - replica.started_s)
            self._become_ready(replica)
            self._pump()

    # --------------------------------------------------------------------------------------------------- the gateway

    @property
    def _has_primary(self) -> bool:
        return bool(self._open) and not self._open[0].is_fallback

    def _pump(self) -> None:
        """Send what can be sent, earliest deadline first; late ones when nobody else waits."""
        queue = self._queue
        while queue:
            found = self._send(queue[0])
            if found is _WAIT:
                if not self._has_primary and self._open:
                    self._scan()
                return
            request = queue.popleft()
            if found is not None:
                self._give_up(request, found)
        late = self._late
        while late and self._send(late[0]) is not _WAIT:
            late.popleft()

    def _scan(self) -> None:
        """Only fallback replicas are up and the first in line is not for them: look for one that is."""
        for request in list(self._queue)[1:_SCAN]:
            if self._send(request) is None:
                self._queue.remove(request)

    def _ahead_s(self) -> float:
        prompt_tokens = sum(request.prompt_tokens for request in self._queue)
        return ahead_s(prompt_tokens, len(self._queue), self._mean_output_tokens, self._open)

    def _send(self, request: SimRequest, ahead_s: float = 0.0) -> Hold | None:
        """None: sent."""
        now_s = self._now_s
        if self.has_plain_router:
            found = self._less_busy_of_two()
        else:
            found = choose(request, self._open, now_s, self._random.random(), self._rules, ahead_s)
        if isinstance(found, Hold):
            return found
        before_s = found.event_s
        found.submit(request, now_s)
        if found.event_s < before_s:
            self._sequence += 1
            heappush(self._heap, (found.event_s, self._sequence, found))
        return None

    def _less_busy_of_two(self) -> SimReplica | Hold:
        open_replicas = self._open
        if not open_replicas:
            return Hold.WAIT
        number = len(open_replicas)
        first = open_replicas[int(self._random.random() * number)]
        second = open_replicas[int(self._random.random() * number)]
        return first if first.num_running <= second.num_running else second

    def _give_up(self, request: SimRequest, why: Hold) -> None:
        self._num_missed += 1
        self._num_ttft_missed += 1
        if why is Hold.REFUSE:
            self._num_refused += 1
        else:
            request.is_late = True
            self._late.append(request)

    def _on_finish(self, request: SimRequest) -> None:
        self._finished.append(request)
        self._mean_output_tokens += 0.001 * (request.output_tokens - self._mean_output_tokens)
        self._pools[request.pool].num_served += 1
        self._ttft_s.append(request.first_s - request.arrival_s)
        is_tpot_met = True
        if request.output_tokens > 1:
            tpot_s = (request.finish_s - request.first_s) / (request.output_tokens - 1)
            self._tpot_s.append(tpot_s)
            is_tpot_met = tpot_s <= self._tpot_slo_s
        if request.is_late:
            return
        if request.first_s > request.deadline_s:
            self._num_missed += 1
            self._num_ttft_missed += 1
        elif not is_tpot_met:
            self._num_missed += 1
            self._num_tpot_missed += 1
        else:
            self._num_met += 1

    # ----------------------------------------------------------------------------------------------------- the fleet

    def _tick(self, interval_s: float) -> None:
        if self._scenario.outages:
            self._apply_outages()
        view = self._view(interval_s)
        began_s = time.perf_counter()
        targets = self._policy.targets(view)
        self._decide_s += time.perf_counter() - began_s
        for index, target in enumerate(targets):
            pool = self._pools[index]
            if target != len(pool.ready) + len(pool.starting):
                self._scale(index, target)
        if self._keep_timeline:
            self._timeline.append(
                Sample(
                    self._now_s,
                    len(view.arrived),
                    view.num_missed,
                    view.num_queued + view.num_late,
                    tuple(targets),
                    tuple(len(pool.ready) for pool in self._pools),
                    tuple(len(pool.starting) for pool in self._pools),
                )
            )
        self._arrived = []
        self._finished = []
        if self._queue or self._late:
            self._pump()

    def _view(self, interval_s: float) -> View:
        view = View(
            now_s=self._now_s,
            interval_s=interval_s,
            pools=tuple([self._pool_view(pool) for pool in self._pools]),
            arrived=self._arrived,
            finished=self._finished,
            num_met=self._num_met - self._met_before,
            num_missed=self._num_missed - self._missed_before,
            num_queued=len(self._queue),
            num_late=len(self._late),
            late_prompt_tokens=sum([request.prompt_tokens for request in self._late]),
            oldest_late_s=self._now_s - self._late[0].arrival_s if self._late else 0.0,
        )
        self._met_before, self._missed_before = self._num_met, self._num_missed
        return view

    def _pool_view(self, pool: _PoolState) -> PoolView:
        steps, prefill_tokens, decode_tokens, kv_token_steps, busy_s = pool.gone_work
        num_running = kv_tokens = 0
        for replica in pool.ready:
            num_running += replica.num_running
            kv_tokens += replica.kv_tokens
        for replica in (*pool.ready, *pool.draining) if pool.draining else pool.ready:
            steps += replica.num_steps
            prefill_tokens += replica.prefill_tokens
            decode_tokens += replica.decode_tokens
            kv_token_steps += replica.kv_token_steps
            busy_s += replica.busy_s
        before = pool.counted
        pool.counted = (steps, prefill_tokens, decode_tokens, kv_token_steps, busy_s)
        cold_starts_s = tuple(pool.new_cold_starts_s)
        pool.new_cold_starts_s.clear()
        return PoolView(
            num_ready=len(pool.ready),
            starting_since_s=tuple([replica.started_s for replica in pool.starting]),
            cold_starts_s=cold_starts_s,
            num_running=num_running,
            kv_tokens=kv_tokens,
            num_steps=int(steps - before[0]),
            prefill_tokens=int(prefill_tokens - before[1]),
            decode_tokens=int(decode_tokens - before[2]),
            kv_token_steps=kv_token_steps - before[3],
            busy_s=busy_s - before[4],
        )

    def _scale(self, index: int, target: int) -> None:
        """Make ``target`` replicas wanted, within the pool's bounds."""
        pool = self._pools[index]
        bounds = pool.config.replicas
        target = min(bounds.max, max(bounds.min, target))
        for _ in range(target - len(pool.ready) - len(pool.starting)):
            pool.num_starts += 1
            self._start(index)
        for _ in range(len(pool.ready) + len(pool.starting) - target):
            if pool.starting:
                pool.num_aborted += 1
                replica = pool.starting[-1]
            else:
                replica = min(pool.ready, key=lambda replica: replica.num_running)
            pool.num_stops += 1
            self._retire(replica)

    def _start(self, index: int) -> None:
        pool = self._pools[index]
        replica = self._new_replica(index, self._now_s)
        pool.starting.append(replica)
        cold = pool.config.cold_start
        sigma = math.sqrt(math.log1p(cold.cv * cold.cv))
        cold_s = cold.mean_s * math.exp(sigma * self._random.gauss(0.0, 1.0) - 0.5 * sigma * sigma)
        if len(pool.ready) + len(pool.starting) <= pool.max_replicas:  # else it hangs until the outage is over
            self._sequence += 1
            heappush(self._starts, (self._now_s + cold_s, self._sequence, replica))

    def _new_replica(self, index: int, started_s: float) -> SimReplica:
        pool = self._pools[index]
        pool.num_made += 1
        return SimReplica(
            f"{pool.config.name}#{pool.num_made}",
            index,
            pool.config.engine.step_model,
            pool.config.fallback is not None,
            started_s,
            self._on_finish,
        )

    def _become_ready(self, replica: SimReplica) -> None:
        replica.is_ready = True
        self._pools[replica.pool].ready.append(replica)
        self._open.append(replica)
        self._open.sort(key=lambda replica: (replica.is_fallback, replica.pool))
        self._pools[replica.pool].ready_hours -= self._now_s / 3600.0

    def _retire(self, replica: SimReplica) -> None:
        """Stop admission; it goes when it has finished what it has."""
        pool = self._pools[replica.pool]
        if replica in pool.starting:
            pool.starting.remove(replica)
            pool.gone_hours += (self._now_s - replica.started_s) / 3600.0
            return
        pool.ready.remove(replica)
        self._open.remove(replica)
        replica.is_ready = False
        replica.is_draining = True
        pool.draining.append(replica)
        if replica.is_idle:
            self._remove(replica, drained=True)

    def _remove(self, replica: SimReplica, drained: bool) -> None:
        """Close its account."""
        pool = self._pools[replica.pool]
        (pool.draining if drained else pool.ready).remove(replica)
        if not drained:
            self._open.remove(replica)
        pool.gone_work = tuple(
            before + more
            for before, more in zip(
                pool.gone_work,
                (replica.num_steps, replica.prefill_tokens, replica.decode_tokens, replica.kv_token_steps,
                 replica.busy_s),
                strict=True,
            )
        )  # fmt: skip
        until_s = min(self._now_s, self._trace.span_s)
        pool.gone_hours += max(0.0, until_s - replica.started_s) / 3600.0
        pool.ready_hours += until_s / 3600.0
        pool.busy_hours += replica.busy_s / 3600.0

    def _wait_again(self, lost: Iterable[SimRequest]) -> None:
        for request in lost:
            (self._late if request.is_late else self._queue).append(request)
        self._queue = deque(sorted(self._queue, key=lambda request: request.deadline_s))
        self._late = deque(sorted(self._late, key=lambda request: request.deadline_s))

    def _apply_outages(self) -> None:
        for index, pool in enumerate(self._pools):
            before = pool.max_replicas
            pool.max_replicas = min(
                (
                    outage.max_replicas
                    for outage in self._scenario.outages
                    if outage.pool == pool.config.name and outage.start_s <= self._now_s < outage.end_s
                ),
                default=pool.config.replicas.max,
            )
            while len(pool.ready) + len(pool.draining) > pool.max_replicas:
                replica = (pool.draining or pool.ready)[-1]
                lost = replica.take_all()
                self._remove(replica, drained=replica.is_draining)
                self._wait_again(lost)
            if pool.max_replicas > before:
                for replica in list(pool.starting):  # what hung gets its resources now
                    pool.starting.remove(replica)
                    pool.gone_hours += (self._now_s - replica.started_s) / 3600.0
                    self._start(index)

    def _bill_rest(self, end_s: float) -> None:
        for pool in self._pools:
            for replica in pool.starting:
                pool.gone_hours += (end_s - replica.started_s) / 3600.0
            for replica in (*pool.ready, *pool.draining):
                pool.gone_hours += (end_s - replica.started_s) / 3600.0
                pool.ready_hours += end_s / 3600.0
                pool.busy_hours += replica.busy_s / 3600.0
                replica.started_s = inf  # its account is closed
                replica.is_draining = False
            pool.starting.clear()

    def _outcome(self, wall_s: float) -> Outcome:
        return Outcome(
            num_requests=len(self._trace),
            num_met=self._num_met,
            num_refused=self._num_refused,
            num_ttft_missed=self._num_ttft_missed,
            num_tpot_missed=self._num_tpot_missed,
            prompt_tokens=sum(self._trace.prompt_tokens),
            output_tokens=sum(self._trace.output_tokens),
            usd=sum(pool.gone_hours * pool.config.usd_per_hour for pool in self._pools),
            replica_hours=tuple(pool.gone_hours for pool in self._pools),
            idle_hours=tuple(max(0.0, pool.ready_hours - pool.busy_hours) for pool in self._pools),
            served=tuple(pool.num_served for pool in self._pools),
            num_starts=tuple(pool.num_starts for pool in self._pools),
            num_stops=tuple(pool.num_stops for pool in self._pools),
            num_aborted=tuple(pool.num_aborted for pool in self._pools),
            ttft_s=self._ttft_s,
            tpot_s=self._tpot_s,
            wall_s=wall_s,
            decide_s=self._decide_s,
            timeline=self._timeline,
        )
