"""What part of the prompts is how short, from a histogram by powers of two (`types.prompt_bucket`)."""

import functools
from collections.abc import Sequence
from itertools import pairwise
from operator import mul

from serving.autoscaler.types import NUM_PROMPT_BUCKETS


def share_up_to(shares: Sequence[float], prompt_tokens: float) -> float:
    """Share of prompts of at most ``prompt_tokens``, from the histogram (evenly spread inside a bucket)."""
    return float(sum(map(mul, shares, _parts_up_to(prompt_tokens))))


def mean_up_to(shares: Sequence[float], prompt_tokens: float) -> float:
    """Mean length of those prompts; 1 if there are none."""
    lengths, counts = _lengths_up_to(prompt_tokens)
    weight = sum(map(mul, shares, counts))
    return max(1.0, sum(map(mul, shares, lengths)) / weight) if weight > 0.0 else 1.0


@functools.lru_cache(maxsize=64)
def _parts_up_to(prompt_tokens: float) -> tuple[float, ...]:
    """Of each bucket, the part that is that short."""
    bounds = [0.0, *(2.0**index for index in range(NUM_PROMPT_BUCKETS))]
    return tuple(min(1.0, max(0.0, (prompt_tokens + 1.0 - low) / (high - low))) for low, high in pairwise(bounds))


@functools.lru_cache(maxsize=64)
def _lengths_up_to(prompt_tokens: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each bucket, the mean length of what is that short, and 1 or 0: whether anything is."""
    lows = [0.0, *(2.0**index for index in range(NUM_PROMPT_BUCKETS - 1))]
    counts = tuple(1.0 if low <= prompt_tokens else 0.0 for low in lows)
    lengths = (min(0.75 * 2.0**index, 0.5 * (low + prompt_tokens)) for index, low in enumerate(lows))
    return tuple(map(mul, lengths, counts)), counts
