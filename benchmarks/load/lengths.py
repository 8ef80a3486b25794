"""How many tokens prompts and answers have: fixed, normal, log-normal, or drawn from what a trace has seen."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.mistake import BenchError
from benchmarks.simulator.trace import Trace, TraceError, read_trace

LengthPairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Tokens of prompts and of answers, one of each per request."""
MOST_TOKENS = 10_000_000
"""Of a prompt or an answer: more than any model takes."""
_FORMS = "N, normal:MEAN,SD or lognormal:MEDIAN,SIGMA"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts. ``spread`` is the normal's standard deviation in tokens, or the log-normal's
    sigma (of the logarithm)."""

    shape: str
    middle_tokens: float
    spread: float = 0.0

    def draw(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """``number`` counts, each at least 1 and at most ``MOST_TOKENS``."""
        if self.shape == "normal":
            drawn = rng.normal(self.middle_tokens, self.spread, number)
        elif self.shape == "lognormal":
            drawn = self.middle_tokens * np.exp(rng.normal(0.0, self.spread, number))
        else:
            drawn = np.full(number, self.middle_tokens)
        tokens: NDArray[np.int64] = np.clip(np.rint(drawn), 1, MOST_TOKENS).astype(np.int64)
        return tokens


def parse_lengths(text: str) -> Lengths:
    """``128``, ``normal:512,64`` or ``lognormal:300,0.9``. Raises BenchError."""
    shape, colon, rest = text.partition(":")
    try:
        if not colon:
            found = Lengths("fixed", int(text))
        elif shape in ("normal", "lognormal"):
            middle, spread = map(float, rest.split(","))
            found = Lengths(shape, middle, spread)
        else:
            raise ValueError
    except ValueError:
        raise BenchError(f"'{text}' is no length; write {_FORMS}") from None
    if not (1 <= found.middle_tokens <= MOST_TOKENS and 0 <= found.spread < math.inf):
        raise BenchError(f"'{text}': a length is 1 to {MOST_TOKENS} tokens, and a spread is a number of 0 or more")
    return found


def load_trace(path: Path) -> Trace:
    """``read_trace`` with its error as a BenchError."""
    try:
        return read_trace(path)
    except TraceError as error:
        raise BenchError(
            f"{error}; known formats: ours, Azure's, BurstGPT's, Mooncake's (docs/benchmarking.md)"
        ) from error


def draw_pairs(trace: Trace, rng: np.random.Generator, number: int) -> LengthPairs:
    """Prompt and output lengths of ``number`` requests of the trace, with replacement: pairs stay together."""
    rows = rng.integers(0, len(trace), number)
    prompts = np.asarray(trace.prompt_tokens, dtype=np.int64)
    outputs = np.asarray(trace.output_tokens, dtype=np.int64)
    return prompts[rows], outputs[rows]
