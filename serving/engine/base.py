"""The seam between a replica and whatever makes the tokens.

An engine is an ASGI app that speaks the OpenAI API, plus a few numbers about itself. Two exist: ``VllmEngine`` and
``ScriptedEngine`` (deterministic, no torch; ships so that tests and benchmarks need no model).
"""

import contextvars
from dataclasses import dataclass, field
from typing import Protocol

from serving.protocol.asgi import AsgiApp
from serving.protocol.frames import NO_WORK, StepSpeed, Usage, WorkDone


@dataclass(slots=True)
class RequestContext:
    """What a replica knows of the request that an engine's app is serving: the model name asked for, whether the body
    constrains its answer by a schema or the like, and a token meter.

    The engine adds to the meter while tokens are made, so that a request is counted whether it ends, fails or is
    dropped.
    """

    model_name: str = ""
    is_constrained: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    num_generating: int = 0
    """Answers that the engine has not let go of yet; only then is the meter's reading final."""
    created: int = 0
    """What the answer says of its time, in Unix seconds; 0: let the engine look."""
    resume: tuple[int, ...] = ()
    """Tokens of the answer that another replica has sent already: the engine goes on after them, counts them as its
    own, and does not send them again."""
    continuable: bool = False
    """Whether another replica could go on from the tokens so far. Asked for by the gateway; an engine that serves this
    request in a way in which it cannot be sets it to False before its answer begins."""
    unsent_ids: list[int] = field(default_factory=list)
    """Tokens made and not yet sent, when ``continuable``. The engine adds, the replica takes."""

    @property
    def usage(self) -> Usage:
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "finish_reason": self.finish_reason,
        }


#: Set by the replica around the engine's app. Tasks that the app starts inherit it, so every sub-request (n > 1)
#: counts into the same context.
current_request: contextvars.ContextVar[RequestContext] = contextvars.ContextVar("current_request")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A reading of the engine's gauges. ``iterations`` and ``generated_tokens`` only grow; a standstill of the first
    while ``unfinished`` is positive is a hang (vLLM's own ``/health`` cannot see one)."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    """Of the cache's blocks."""
    kv_tokens: float = 0.0
    """Tokens that the running sequences hold: what is in their blocks, which are not all full."""
    generated_tokens: int = 0
    iterations: int = 0
    unfinished: int = 0
    """Requests handed to the engine that it has not finished, whether it has looked at them or not."""
    work: WorkDone = NO_WORK
    speed: StepSpeed = (0.001, 0.0, 0.0, 1e-6)
    """Measured; an engine that measures nothing promises much."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_capacity_tokens: int = 1_000_000


class Engine(Protocol):
    """What a replica needs of an engine."""

    async def start(self) -> None:
        """Load the model. Raises on anything that makes serving impossible."""

    @property
    def app(self) -> AsgiApp:
        """The OpenAI app. Only valid after ``start``."""

    @property
    def dead(self) -> bool:
        """True once the engine can never answer again."""

    @property
    def draws_by_place(self) -> bool:
        """Whether a drawn token depends on its logits, the request's seed and its place alone, so that another replica
        draws the same. Only valid after ``start``."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, in tokens. Only valid after ``start``."""

    def load(self) -> EngineLoad:
        """Current gauges; cheap, no I/O."""

    async def answer(self) -> None:
        """Return when the process that makes the tokens has answered; it answers between two steps. Never, when it
        hangs."""

    async def stop(self) -> None:
        """Release processes and memory. Idempotent."""
