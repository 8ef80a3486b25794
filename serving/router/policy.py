"""Which replica serves a request: a pure choice from what is known now."""

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What the choice needs to know of a replica."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def pending(self) -> int:
        """Requests it has, as last reported, plus what this gateway has sent since."""


C = TypeVar("C", bound=Candidate)


def choose(candidates: Sequence[C], rng: random.Random) -> C | None:
    """The less loaded of two ready replicas drawn at random (power of two choices, Mitzenmacher 2001); None if none
    is ready.

    Two random draws instead of the minimum keep several gateways, each with slightly old numbers, from all picking
    the same one.
    """
    ready = [candidate for candidate in candidates if candidate.is_ready]
    if not ready:
        return None
    if len(ready) == 1:
        return ready[0]
    first, second = rng.sample(ready, 2)
    return first if first.pending <= second.pending else second
