"""What an engine's steps cost: counted, and fitted as they run.

One step of a continuously batching engine takes

    seconds = c0 + c1 · sequences + ckv · KV tokens + cp · prompt tokens

The four are fitted by non-negative least squares over the steps of the last minutes. Errors count relative to the
step as measured or as expected, whichever is longer: neither a step in which the machine stood still nor one whose end
was seen too soon after the one before (both come of a busy event loop) outweighs the others. What was not seen yet (an
engine that has never had a long context says nothing of ckv) stays at the seed that the fit begins with.
"""

from collections.abc import Sequence

from serving.protocol.frames import NO_WORK, StepSpeed, WorkDone

#: Steps after which an old one counts half.
HALF_LIFE_STEPS = 5_000.0
#: A gap longer than this between two steps says that the engine had nothing to do in between.
IDLE_GAP_S = 30.0

_TYPICAL = (1.0, 8.0, 4_096.0, 256.0)
_NUM_SWEEPS = 40
_MIN_STEP_S = 1e-4


def tokens_in_blocks(held_tokens: float, num_sequences: int, block_size: int) -> float:
    """How many tokens lie in blocks with room for ``held_tokens``: of each sequence's last one, half is still empty.

    With the blocks of 128 tokens that vLLM has on a CPU, short answers hold half as much again as they have tokens, and
    whoever takes the one for the other expects a fifth more of an engine than it can do.
    """
    return max(float(num_sequences), held_tokens - num_sequences * (block_size - 1) / 2.0)


class StepMeter:
    """``seed``: the coefficients before any was measured, in seconds; worth ``seed_steps`` measured steps each."""

    def __init__(self, seed: StepSpeed, seed_steps: float) -> None:
        self.work: WorkDone = NO_WORK
        self._last_s: float | None = None
        self._speed = seed
        self._is_fitted = True
        self._moments = [[0.0] * len(_TYPICAL) for _ in _TYPICAL]
        self._targets = [0.0] * len(_TYPICAL)
        self._seed = seed
        self._seed_steps = seed_steps

    def on_step(self, now_s: float, num_sequences: int, kv_tokens: float, prefill_tokens: int) -> None:
        """A step has ended. One whose beginning is not known does not count."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None or now_s - last_s > IDLE_GAP_S:
            return
        step_s = max(now_s - last_s, _MIN_STEP_S)
        num_steps, all_prefill_tokens, all_decode_tokens, kv_token_steps, busy_s = self.work
        self.work = (
            num_steps + 1.0,
            all_prefill_tokens + prefill_tokens,
            all_decode_tokens + num_sequences,
            kv_token_steps + kv_tokens,
            busy_s + step_s,
        )
        self._learn((1.0, float(num_sequences), kv_tokens, float(prefill_tokens)), step_s)

    def on_request(self, now_s: float) -> None:
        """An engine without work is given some: its next step begins now."""
        if self._last_s is None:
            self._last_s = now_s

    def on_idle(self) -> None:
        """The engine has nothing left to do: the time until its next step is not that step's."""
        self._last_s = None

    @property
    def speed(self) -> StepSpeed:
        """The coefficients now: seconds per step, per sequence, per token in the KV cache, per prompt token."""
        if not self._is_fitted:
            self._speed = self._fit()
            self._is_fitted = True
        return self._speed

    def _learn(self, step: tuple[float, ...], step_s: float) -> None:
        fade = 0.5 ** (1.0 / HALF_LIFE_STEPS)
        weight = 1.0 / max(step_s, _seconds(self._speed, step)) ** 2
        for row, value in zip(self._moments, step, strict=True):
            scaled = weight * value
            for column, other in enumerate(step):
                row[column] = row[column] * fade + scaled * other
        self._targets = [
            target * fade + weight * value * step_s for target, value in zip(self._targets, step, strict=True)
        ]
        self._is_fitted = False

    def _fit(self) -> StepSpeed:
        """Coordinate descent from the last fit: each coefficient in turn at its best, and never below zero."""
        found = list(self._speed)
        # The seed, as if so many typical steps had been seen in which nothing but one coefficient cost anything. It
        # does not fade: of an engine that never makes an output token there is nothing else to say.
        num_steps, _, _, _, busy_s = self.work
        step_s = max(_seconds(self._seed, _TYPICAL), busy_s / max(1.0, num_steps), _MIN_STEP_S)
        seed_moments = [self._seed_steps * (typical / step_s) ** 2 for typical in _TYPICAL]
        for _ in range(_NUM_SWEEPS):
            for index, row in enumerate(self._moments):
                rest = sum(row[other] * found[other] for other in range(len(found)) if other != index)
                seed_moment = seed_moments[index]
                target = self._targets[index] + seed_moment * self._seed[index]
                found[index] = max(0.0, (target - rest) / (row[index] + seed_moment))
        return found[0], found[1], found[2], found[3]


def _seconds(speed: StepSpeed, step: Sequence[float]) -> float:
    """Of a step that is so big."""
    return sum(coefficient * number for coefficient, number in zip(speed, step, strict=True))
