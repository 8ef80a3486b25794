"""The seam between a replica and whatever makes the tokens.

An engine is an ASGI app that speaks the OpenAI API, plus a few numbers about itself. Two exist: ``VllmEngine`` and
``ScriptedEngine`` (deterministic, no torch; ships so that tests and benchmarks need no model).
"""

import contextvars
from dataclasses import dataclass
from typing import Protocol

from serving.protocol.asgi import AsgiApp
from serving.protocol.frames import Usage


@dataclass(slots=True)
class RequestContext:
    """What a replica knows of the request that an engine's app is serving: the model name asked for and a token meter.

    The engine adds to the meter while tokens are made, so that a request is counted whether it ends, fails or is
    dropped.
    """

    model_name: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    num_generating: int = 0
    """Answers that the engine has not let go of yet; only then is the meter's reading final."""

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
    while ``running`` is positive is a hang (vLLM's own ``/health`` cannot see one)."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    generated_tokens: int = 0
    iterations: int = 0


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
    def max_model_len(self) -> int:
        """Longest prompt plus output, in tokens. Only valid after ``start``."""

    def load(self) -> EngineLoad:
        """Current gauges; cheap, no I/O."""

    async def stop(self) -> None:
        """Release processes and memory. Idempotent."""
