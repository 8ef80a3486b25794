"""Notices an engine that hangs: it has work, or a question, and takes no step. vLLM's health check cannot (faults.md,
finding 4)."""

from dataclasses import dataclass

from serving.engine.base import EngineLoad


@dataclass(slots=True)
class Watchdog:
    """``limit_s``: how long one step, or the answer to a question, may take. A prefill in chunks steps after each
    chunk, and an engine that has no request need not step at all: set ``is_asked`` while it owes an answer.
    """

    limit_s: float
    is_asked: bool = False
    _iterations: int = -1
    _since_s: float = 0.0

    def is_hung(self, load: EngineLoad, now_s: float) -> bool:
        """Whether the engine has stood still for longer than ``limit_s`` with something to do. Ask often."""
        return self.standstill_s(load, now_s) > self.limit_s

    def standstill_s(self, load: EngineLoad, now_s: float) -> float:
        """For how many seconds the engine has taken no step, with something to do. Ask often."""
        if load.iterations != self._iterations or not (load.unfinished or self.is_asked):
            self._iterations, self._since_s = load.iterations, now_s
        return now_s - self._since_s
