"""A replica as one gateway knows it: its link, what it last said of itself, and what it can promise."""

import math
from dataclasses import dataclass, field

from serving.protocol.frames import Load, WorkDone
from serving.protocol.membership import ReplicaAddress
from serving.router.breaker import Breaker
from serving.router.link import ReplicaLink
from serving.router.prediction import StepModel, prefill_tokens_per_s, tpot_s

#: Of a replica that has said nothing yet: it takes requests, and promises them at once.
UNKNOWN_SPEED = StepModel(0.01, 0.0, 0.0, 1e-5, 2048, 256, 1_000_000)
#: So many more than it runs at once may wait inside an engine, as a share: when one ends the next is there already.
QUEUED_SHARE = 0.05
#: An engine may take this long for a step, in seconds. What stands still for longer will for as long again.
LONG_STEP_S = 1.0
#: A prompt counts as done after this many times what it was predicted to take, if nothing was heard of it.
PATIENCE = 2.0


@dataclass(slots=True)
class Replica:
    """What `choice.choose` and the directory need to know of a replica.

    The attributes that `choose` reads are plain values, brought up to date by ``refresh``: it looks at every replica
    for every request.
    """

    address: ReplicaAddress
    link: ReplicaLink
    is_fallback: bool = False
    load: Load | None = None
    load_at_s: float = 0.0
    breaker: Breaker = field(default_factory=Breaker)
    is_silent: bool = False
    has_dead_engine: bool = False
    """It has said so; its process ends in a moment."""

    name: str = ""
    is_ready: bool = False
    backlog_s: float = 0.0
    prefill_tokens_per_s: float = 1.0
    tpot_s: float = 0.0
    num_running: int = 0
    num_free_slots: int = 0
    num_queue_slots: int = 0
    kv_free_tokens: int = 0

    _speed: StepModel = UNKNOWN_SPEED
    _own_pending_tokens: int = 0
    """Prompt tokens that this gateway has sent and that are not computed yet."""
    _own_kv_tokens: int = 0
    """Tokens that the requests sent since the last report will hold."""
    _others_pending_tokens: int = 0
    _others_streams: int = 0
    _standstill_s: float = 0.0
    _kv_tokens: float = 0.0
    """Those that its sequences have, which cost time."""
    _kv_used_tokens: float = 0.0
    """Those that its blocks have room for, which cost memory."""

    def __post_init__(self) -> None:
        self.name = self.address.replica
        self.refresh()

    def on_load(self, load: Load, now_s: float) -> WorkDone | None:
        """It has reported: four times a second, and at once when it begins to drain. Returns what its engine has done
        since its last report, if that is known.
        """
        before = self.load["work"] if self.load is not None else None
        self.load, self.load_at_s, self.is_silent = load, now_s, False
        self._speed = StepModel.of(load)
        self._others_streams = max(0, load["streams"] - self.link.num_streams)
        self._others_pending_tokens = max(0, load["pending_prompt_tokens"] - self._own_pending_tokens)
        self._standstill_s = max(0.0, load["standstill_s"] - LONG_STEP_S)
        self._kv_tokens = load["kv_tokens"]
        self._kv_used_tokens = load["kv_cache_usage"] * load["kv_capacity_tokens"]
        self._own_kv_tokens = 0
        self.refresh()
        return _difference(load["work"], before) if before is not None else None

    def refresh(self) -> None:
        """Reckon anew what it can promise."""
        is_leaving = self.has_dead_engine or (self.load is not None and self.load["draining"])
        self.is_ready = self.link.is_open and not self.is_silent and not is_leaving
        speed = self._speed
        self.num_running = self.link.num_streams + self._others_streams
        # A pending prompt decodes nothing yet, and what is more than the engine runs at once waits inside it.
        num_decoding = min(self.num_running, speed.max_num_seqs)
        self.prefill_tokens_per_s = prefill_tokens_per_s(speed, num_decoding, self._kv_tokens)
        pending_tokens = self._own_pending_tokens + self._others_pending_tokens
        self.backlog_s = pending_tokens / self.prefill_tokens_per_s + self._standstill_s
        self.tpot_s = tpot_s(speed, num_decoding, self._kv_tokens)
        self.num_queue_slots = math.ceil(QUEUED_SHARE * speed.max_num_seqs)
        self.num_free_slots = speed.max_num_seqs + self.num_queue_slots - self.num_running
        self.kv_free_tokens = int(speed.kv_capacity_tokens - self._kv_used_tokens - self._own_kv_tokens)

    def begin(self, prompt_tokens: int, kv_tokens: int, now_s: float) -> "Prefill":
        """A request was sent to it; tell the returned object when its prompt is done."""
        due_s = now_s + PATIENCE * (self.backlog_s + prompt_tokens / self.prefill_tokens_per_s)
        self._own_pending_tokens += prompt_tokens
        self._own_kv_tokens += kv_tokens
        self.refresh()
        return Prefill(self, prompt_tokens, due_s)

    def end_prefill(self, prompt_tokens: int) -> None:
        self._own_pending_tokens -= prompt_tokens
        self.refresh()


def _difference(now: WorkDone, before: WorkDone) -> WorkDone:
    steps, prefill, decode, kv, busy = (max(0.0, new - old) for new, old in zip(now, before, strict=True))
    return steps, prefill, decode, kv, busy


@dataclass(slots=True)
class Prefill:
    """A prompt that a replica has been sent and has not computed, as far as we know."""

    _replica: Replica
    _prompt_tokens: int
    due_s: float
    """Later than this, it is taken for done: an answer that comes whole says nothing until its end."""

    def end(self) -> None:
        """Its first token is here, or it failed. Idempotent."""
        if self._prompt_tokens:
            self._replica.end_prefill(self._prompt_tokens)
            self._prompt_tokens = 0
