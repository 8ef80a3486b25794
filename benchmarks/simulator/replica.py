"""A simulated replica: continuous batching with chunked prefill, in whole engine steps.

A step takes c0 + c1 · sequences + ckv · KV tokens + cp · prompt tokens (`serving/router/prediction.py`). It gives every
running sequence one token and fills its token budget with prompt tokens, first come first served. Steps with a prompt
in them are simulated one by one; a run of steps without is one event, since nothing but the KV cache changes in it.

A request is admitted while there is a slot and room for its whole sequence in the KV cache, so nothing is ever
preempted. Everything is plain attributes, because `serving/router/choice.py` reads them for every request.
"""

import math
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from serving.router.prediction import StepModel


class SimRequest:
    """One request of a trace on its way. Times are on the simulation's clock; ``first_s`` < 0 until the first token."""

    __slots__ = (
        "allows_fallback",
        "arrival_s",
        "cached_tokens",
        "deadline_s",
        "expected_output_tokens",
        "finish_s",
        "first_s",
        "home",
        "index",
        "is_batch",
        "is_late",
        "output_tokens",
        "pool",
        "prompt_tokens",
        "remaining_tokens",
    )

    def __init__(self, index: int, arrival_s: float, prompt_tokens: int, output_tokens: int, ttft_slo_s: float) -> None:
        self.index = index
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.deadline_s = arrival_s + ttft_slo_s
        self.first_s = -1.0
        self.finish_s = -1.0
        self.remaining_tokens = prompt_tokens
        self.pool = 0
        self.is_late = False
        self.is_batch = False
        self.home: str | None = None
        self.cached_tokens = 0
        self.expected_output_tokens = 0.0
        self.allows_fallback = False


class SimReplica:
    """One replica from the decision to start it until it is gone."""

    __slots__ = (
        "_admitted",
        "_chunk_tokens",
        "_clock",
        "_decode_order",
        "_kv_admitted_tokens",
        "_model",
        "_pending_tokens",
        "_run_start_s",
        "_run_steps",
        "_waiting",
        "backlog_s",
        "busy_s",
        "decode_tokens",
        "event_s",
        "is_draining",
        "is_fallback",
        "is_ready",
        "kv_free_tokens",
        "kv_token_steps",
        "kv_tokens",
        "name",
        "num_free_slots",
        "num_running",
        "num_steps",
        "on_finish",
        "pool",
        "prefill_tokens",
        "prefill_tokens_per_s",
        "started_s",
        "tpot_s",
    )

    def __init__(
        self,
        name: str,
        pool: int,
        model: StepModel,
        is_fallback: bool,
        started_s: float,
        on_finish: Callable[[SimRequest], None],
    ) -> None:
        self.name = name
        self.pool = pool
        self.is_fallback = is_fallback
        self.is_ready = False
        self.is_draining = False
        self.started_s = started_s
        self.on_finish = on_finish
        self.event_s = inf
        self._model = model
        self._waiting: deque[SimRequest] = deque()
        self._admitted: deque[SimRequest] = deque()
        self._decode_order: list[tuple[int, int, SimRequest]] = []
        self._clock = 0  # tokens that a sequence decoding since the start would have
        self._kv_admitted_tokens = 0
        self._pending_tokens = 0
        self._run_steps = 0
        self._run_start_s = 0.0
        self._chunk_tokens = 0
        self.kv_tokens = 0
        self.num_running = 0
        self.num_free_slots = model.max_num_seqs
        self.kv_free_tokens = model.kv_capacity_tokens
        self.busy_s = 0.0
        self.num_steps = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.kv_token_steps = 0.0
        self.backlog_s = 0.0
        self.prefill_tokens_per_s = 0.0
        self.tpot_s = 0.0
        self._begin(started_s)

    def submit(self, request: SimRequest, now_s: float) -> None:
        """Hand over a request. ``event_s`` may become earlier."""
        request.pool = self.pool
        self._waiting.append(request)
        self.num_running += 1
        self.num_free_slots -= 1
        self.kv_free_tokens -= request.prompt_tokens + request.output_tokens
        self._pending_tokens += request.prompt_tokens
        self.backlog_s = self._pending_tokens / self.prefill_tokens_per_s
        if self.event_s == inf:
            self._begin(now_s)
        elif not self._chunk_tokens and self._run_steps > 1:
            self._cut_run(now_s)

    def fire(self) -> None:
        """End the steps that end at ``event_s``, and begin the next."""
        now_s = self.event_s
        steps = self._run_steps
        order = self._decode_order
        num_decoding = len(order)
        clock = self._clock = self._clock + steps
        self.busy_s += now_s - self._run_start_s
        self.num_steps += steps
        if num_decoding:
            self.decode_tokens += steps * num_decoding
            self.kv_token_steps += steps * (self.kv_tokens + 0.5 * num_decoding * (steps - 1))
            self.kv_tokens += steps * num_decoding
            while order and order[0][0] <= clock:
                self._finish(heappop(order)[2], now_s)
        else:
            self.kv_token_steps += steps * self.kv_tokens
        chunk_tokens = self._chunk_tokens
        if chunk_tokens:
            self.prefill_tokens += chunk_tokens
            self._pending_tokens -= chunk_tokens
            self.kv_tokens += chunk_tokens
            admitted = self._admitted
            while chunk_tokens:
                request = admitted[0]
                if request.remaining_tokens > chunk_tokens:
                    request.remaining_tokens -= chunk_tokens
                    break
                chunk_tokens -= request.remaining_tokens
                request.remaining_tokens = 0
                admitted.popleft()
                if request.first_s < 0.0:
                    request.first_s = now_s
                self.kv_tokens += 1
                if request.output_tokens > 1:
                    heappush(order, (clock + request.output_tokens - 1, request.index, request))
                else:
                    self._finish(request, now_s)
        self._begin(now_s)

    def take_all(self) -> list[SimRequest]:
        """Everything it was working on, to be done again elsewhere. It is dead afterwards."""
        requests = [*self._waiting, *self._admitted, *(entry[2] for entry in self._decode_order)]
        for request in requests:
            request.remaining_tokens = request.prompt_tokens
        self.event_s = inf
        self.is_ready = False
        return requests

    @property
    def is_idle(self) -> bool:
        return self.num_running == 0

    def _finish(self, request: SimRequest, now_s: float) -> None:
        request.finish_s = now_s
        tokens = request.prompt_tokens + request.output_tokens
        self.kv_tokens -= tokens
        self._kv_admitted_tokens -= tokens
        self.kv_free_tokens += tokens
        self.num_running -= 1
        self.num_free_slots += 1
        self.on_finish(request)

    def _begin(self, now_s: float) -> None:
        """Admit what fits, and set when the next step, or run of steps, ends."""
        model = self._model
        waiting = self._waiting
        admitted = self._admitted
        num_decoding = len(self._decode_order)
        while waiting:
            num_active = len(admitted) + num_decoding
            tokens = waiting[0].prompt_tokens + waiting[0].output_tokens
            if num_active and (
                num_active >= model.max_num_seqs or self._kv_admitted_tokens + tokens > model.kv_capacity_tokens
            ):
                break
            self._kv_admitted_tokens += tokens
            admitted.append(waiting.popleft())
        self._run_start_s = now_s
        kv_tokens = self.kv_tokens
        base_s = model.c0_s + model.c1_s_per_sequence * num_decoding + model.ckv_s_per_token * kv_tokens
        budget_tokens = model.max_num_batched_tokens - num_decoding
        if admitted:
            chunk_tokens = 0
            for request in admitted:
                chunk_tokens += request.remaining_tokens
                if chunk_tokens >= budget_tokens:
                    chunk_tokens = budget_tokens
                    break
            self._chunk_tokens = chunk_tokens
            self._run_steps = 1
            self.event_s = now_s + base_s + model.cp_s_per_token * chunk_tokens
        elif num_decoding:
            self._chunk_tokens = 0
            steps = self._decode_order[0][0] - self._clock
            self._run_steps = steps
            growth_s = model.ckv_s_per_token * num_decoding
            self.event_s = now_s + steps * (base_s + 0.5 * growth_s * (steps - 1))
        else:
            self._chunk_tokens = 0
            self._run_steps = 0
            self.event_s = inf
        self.prefill_tokens_per_s = budget_tokens / (base_s + model.cp_s_per_token * budget_tokens)
        self.backlog_s = self._pending_tokens / self.prefill_tokens_per_s
        self.tpot_s = base_s + model.c1_s_per_sequence

    def _cut_run(self, now_s: float) -> None:
        """A request came in the middle of a run of steps: the run ends with the step under way."""
        model = self._model
        num_decoding = len(self._decode_order)
        base_s = model.step_s(num_decoding, self.kv_tokens)
        half_s = 0.5 * model.ckv_s_per_token * num_decoding
        elapsed_s = now_s - self._run_start_s
        # steps · base + steps · (steps − 1) · half ≥ elapsed
        linear_s = base_s - half_s
        if half_s * elapsed_s > 1e-9 * linear_s * linear_s:
            root_s = math.sqrt(linear_s * linear_s + 4.0 * half_s * elapsed_s)
            steps = math.ceil((root_s - linear_s) / (2.0 * half_s))
        else:
            steps = math.ceil(elapsed_s / linear_s)
        if steps < self._run_steps:
            self._run_steps = max(1, steps)
            steps = self._run_steps
            self.event_s = max(now_s, self._run_start_s + steps * (base_s + half_s * (steps - 1)))
