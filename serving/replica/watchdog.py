"""Notices an engine that hangs: it has work, or a question, and takes no step. vLLM's health check cannot."""

from dataclasses import dataclass

from serving.engine.base import EngineLoad

_OFTEN_S = 1.0
"""Whoever asks later than this has stood still too: that time says nothing of the engine."""


@dataclass(slots=True)
class Watchdog:
    """``limit_s``: how long one step, or the answer to a question, may take. A prefill in chunks steps after each
    chunk, and an engine that has no request need not step at all: set ``is_asked`` while it owes an answer.
    """

    limit_s: float
    is_asked: bool = False
    _iterations: int = -1
    _since_s: float = 0.0
    _asked_s: float = 0.0

    def is_hung(self, load: EngineLoad, now_s: float) -> bool:
        """Whether it has stood still for longer than ``limit_s`` with something to do. Ask several times a second."""
        return self.standstill_s(load, now_s) > self.limit_s

    def standstill_s(self, load: EngineLoad, now_s: float) -> float:
        """Seconds since the engine took a step, with something to do. Ask several times a second."""
        if (gap_s := now_s - self._asked_s) > _OFTEN_S:
            self._since_s += gap_s
        self._asked_s = now_s
        if load.iterations != self._iterations or not (load.unfinished or self.is_asked):
            self._iterations, self._since_s = load.iterations, now_s
        return now_s - self._since_s
