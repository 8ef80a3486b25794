"""Which replica serves a request, from predictions: a pure choice, the same in the gateway and in the simulator.

A replica is *open* while its own prompt backlog is short. A request is sent to the open replica that promises the
earliest first token; while none is open it waits in the gateway, where a replica that turns up later, or drains sooner,
can still take it. Waiting there costs nothing as long as each replica has `Rules.max_backlog_s` of work, and it keeps
every prediction short and therefore right.

- A replica that is full (of sequences, of KV cache, or slower than the TPOT allows) promises a first token only after
  one of its sequences has ended.
- The replica that holds the request's prefix is preferred while that delays the first token by no more than
  `Rules.max_affinity_delay_s`. A prefix that saves next to nothing is no reason.
- Equal promises: the replica with fewer sequences; then the random draw, because several gateways with slightly old
  figures must not all pick the same one (power of two choices, Mitzenmacher 2001).
- A fallback pool takes what it can finish inside both SLOs when no primary replica will meet the deadline.
- What cannot meet its deadline anywhere is refused when shedding is on. Else it is served late, behind all that still
  can (`Request.is_late`): a token that is too late must not make the next one late too. Batch requests are never late.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

FALLBACK_TTFT_SHARE = 0.8
"""Share of the remaining time in which a fallback replica must promise the first token: its figures are rougher."""


class Request(Protocol):
    """What the choice needs to know of a request."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def expected_output_tokens(self) -> float: ...

    @property
    def deadline_s(self) -> float:
        """When its first token is due, on the caller's clock."""

    @property
    def is_late(self) -> bool:
        """Its deadline was given up (`Hold.LATE`): it is served from what capacity is left."""

    @property
    def is_batch(self) -> bool: ...

    @property
    def home(self) -> str | None:
        """Name of the replica that holds its prefix."""

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that its home need not compute."""

    @property
    def allows_fallback(self) -> bool:
        """Whether its key, its prompt and its limit on output let a fallback pool serve it."""


class Replica(Protocol):
    """What the choice needs to know of a replica: plain attributes, kept by its owner (`router/replica.py`)."""

    @property
    def name(self) -> str: ...

    @property
    def is_ready(self) -> bool: ...

    @property
    def is_fallback(self) -> bool:
        """Whether its pool only stands in for others."""

    @property
    def backlog_s(self) -> float:
        """Seconds until the prompt tokens it was sent so far are done, at its present speed."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Its prompt speed with the sequences that it runs now."""

    @property
    def tpot_s(self) -> float:
        """Seconds per output token with one more sequence than it runs now."""

    @property
    def num_running(self) -> int:
        """Requests that it was sent and has not finished."""

    @property
    def num_free_slots(self) -> int:
        """How many more it may be sent before its engine queues them."""

    @property
    def kv_free_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What is promised, and what may be traded for what."""

    tpot_slo_s: float
    max_backlog_s: float = 0.25
    """Prompt work beyond which a replica is not sent more. About two full steps of a GPU: it never runs dry."""
    max_affinity_delay_s: float = 0.5
    """How much later a first token may come for the sake of a cached prefix."""
    max_affinity_load: float = 1.25
    """How many times as many requests as the best other replica one may run and still be preferred for its prefix
    (bounded loads: Mirrokni et al., "Consistent Hashing with Bounded Loads", 2018), beyond `_AFFINITY_SLACK`."""
    margin_s: float = 0.15
    """How much sooner than its deadline a first token must be promised: about a step of a GPU, since a request is not
    in the one under way. Without it an overloaded fleet works itself to the bone for answers that are all a little
    late (simulated at 1.6 times capacity: 86 % in time without, 92 % with; of those admitted 94 % and 99.9 %)."""
    is_shedding: bool = False
    """Refuse what cannot meet its deadline, instead of serving it late."""


class Hold(enum.Enum):
    """No replica now."""

    WAIT = "wait"
    """Ask again when a replica's load changes."""
    LATE = "late"
    """It cannot meet its deadline any more: queue it behind those that can, and ask again."""
    REFUSE = "refuse"
    """It cannot meet its deadline any more: say so."""


R = TypeVar("R", bound=Replica)

_AFFINITY_SLACK = 8
_EQUAL_S = 0.005
"""Promises closer than this are the same promise."""


def choose(
    request: Request, replicas: Sequence[R], now_s: float, draw: float, rules: Rules, ahead_s: float = 0.0
) -> R | Hold:
    """The replica for ``request``, or why there is none yet.

    ``draw`` is uniform in [0, 1). ``ahead_s``: seconds that the primary replicas need for the prompts that wait in the
    gateway before this one.
    """
    remaining_s = request.deadline_s - now_s - rules.margin_s
    best, soonest_s = _primary(request, replicas, draw, rules)
    if request.is_late or request.is_batch:
        return best or (Hold.WAIT if soonest_s < _NEVER_S else _idle_fallback(request, replicas) or Hold.WAIT)
    if ahead_s + soonest_s <= remaining_s:
        return best or Hold.WAIT
    substitute = _substitute(request, replicas, remaining_s, rules)
    if substitute is not None:
        return substitute
    if soonest_s <= remaining_s or (soonest_s == _NEVER_S and remaining_s > 0.0):
        return best or Hold.WAIT  # those before it may give up; where no primary replica is up, one may come
    return Hold.REFUSE if rules.is_shedding else Hold.LATE


_NEVER_S = float("inf")


def ahead_s(prompt_tokens: int, num_waiting: int, expected_output_tokens: float, replicas: Iterable[Replica]) -> float:
    """Seconds until the primary replicas have taken in ``num_waiting`` requests with so many prompt tokens in all: as
    fast as they compute prompts, or, where they are full, as their sequences end.
    """
    speed_tokens_per_s = ends_per_s = 0.0
    num_free = 0
    for replica in replicas:
        if replica.is_ready and not replica.is_fallback:
            speed_tokens_per_s += replica.prefill_tokens_per_s
            ends_per_s += replica.num_running / (max(1.0, expected_output_tokens) * max(1e-6, replica.tpot_s))
            num_free += max(0, replica.num_free_slots)
    if not speed_tokens_per_s:
        return _NEVER_S
    prompts_s = prompt_tokens / speed_tokens_per_s
    if num_waiting <= num_free or not ends_per_s:
        return prompts_s
    return max(prompts_s, (num_waiting - num_free) / ends_per_s)


def _primary(request: Request, replicas: Sequence[R], draw: float, rules: Rules) -> tuple[R | None, float]:
    """The open primary replica to prefer, and the soonest first token that any primary replica, open or not, promises.

    One pass without calls: at 64 replicas this is what a request's choice costs.
    """
    prompt_tokens = request.prompt_tokens
    kv_tokens = prompt_tokens + request.expected_output_tokens
    home_name = request.home
    max_backlog_s = rules.max_backlog_s
    tpot_slo_s = rules.tpot_slo_s
    best: R | None = None
    home: R | None = None
    best_s = soonest_s = home_s = _NEVER_S
    start = int(draw * len(replicas))
    for replica in (*replicas[start:], *replicas[:start]) if start else replicas:
        backlog_s = replica.backlog_s
        if replica.is_fallback or not replica.is_ready or (backlog_s > soonest_s and home_name is None):
            continue
        speed_tokens_per_s = replica.prefill_tokens_per_s
        promise_s = backlog_s + prompt_tokens / speed_tokens_per_s
        if home_name is not None and replica.name == home_name:
            saved_s = min(prompt_tokens, request.cached_tokens) / speed_tokens_per_s
            home_s = promise_s - saved_s
            is_home = saved_s > _EQUAL_S
        elif promise_s > best_s + _EQUAL_S:
            continue
        else:
            is_home = False
        num_running = replica.num_running
        if best is not None and promise_s > best_s - _EQUAL_S and num_running >= best.num_running and not is_home:
            continue
        is_full = replica.num_free_slots <= 0 or (
            num_running and (replica.tpot_s > tpot_slo_s or replica.kv_free_tokens < kv_tokens)
        )
        if is_full:
            promise_s += request.expected_output_tokens * replica.tpot_s / max(1, num_running)
        if promise_s < soonest_s:
            soonest_s = promise_s
        if is_full or backlog_s > max_backlog_s:
            continue
        if is_home:
            home = replica
        if (
            best is None
            or promise_s < best_s - _EQUAL_S
            or (promise_s < best_s + _EQUAL_S and num_running < best.num_running)
        ):
            best, best_s = replica, promise_s
    if (
        home is not None
        and best is not None
        and home_s <= best_s + rules.max_affinity_delay_s
        and home.num_running <= rules.max_affinity_load * best.num_running + _AFFINITY_SLACK
    ):
        return home, min(soonest_s, home_s)
    return best, soonest_s


def _substitute(request: Request, replicas: Sequence[R], remaining_s: float, rules: Rules) -> R | None:
    """The fallback replica that promises the earliest first token, if that and its TPOT are inside the SLOs.

    Only one that has no prompt to do: there a prompt takes seconds, and two in a row spoil the TPOT of whoever decodes.
    """
    if not request.allows_fallback:
        return None
    best: R | None = None
    best_s = FALLBACK_TTFT_SHARE * remaining_s
    for replica in replicas:
        if (
            replica.is_fallback
            and replica.is_ready
            and replica.backlog_s <= 0.0
            and replica.num_free_slots > 0
            and replica.tpot_s <= rules.tpot_slo_s
        ):
            promise_s = replica.backlog_s + request.prompt_tokens / replica.prefill_tokens_per_s
            if promise_s < best_s:
                best, best_s = replica, promise_s
    return best


def _idle_fallback(request: Request, replicas: Sequence[R]) -> R | None:
    """Where nothing else is up, a fallback replica without work serves what is late anyway."""
    if request.allows_fallback:
        for replica in replicas:
            if replica.is_fallback and replica.is_ready and not replica.num_running:
                return replica
    return None
