"""What the autoscaler remembers between decisions. JSON in and out, so that a decision log can be replayed."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, cast

from serving.autoscaler.demand import DemandMemory, Mean

_UNKNOWN = Mean()
_NOTHING_SEEN = DemandMemory()


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """One pool."""

    target: int = -1
    """The last decision; −1: none yet."""
    unneeded_s: float = 0.0
    """For how long fewer would have done, less for how long since they would not."""
    wanted_since: int = 0
    """The most, below the target, that was wanted in that time."""
    since_down_s: float | None = None
    """How long ago it was last made smaller."""
    regret: float = 0.0
    """How often that was soon taken back, fading: each time doubles the hold."""
    cold_start: Mean = _UNKNOWN
    cold_start_square: Mean = _UNKNOWN
    speed: Mean = _UNKNOWN
    """Modelled over measured time of the same steps: below 1, replicas are slower than calibrated."""
    num_failures: int = 0
    backed_off_until_s: float | None = None
    cap: int = 0
    """While backed off: no more than this many."""


@dataclass(frozen=True, slots=True)
class Memory:
    """All of it. A fresh one makes no step down until it has seen enough (`Tuning.relearn_s`)."""

    last_s: float | None = None
    demand: DemandMemory = _NOTHING_SEEN
    num_requests: float = 0.0
    """In the budget's window, fading; and those that missed."""
    num_missed: float = 0.0
    pools: dict[str, PoolMemory] = field(default_factory=dict)


def to_dict(memory: Memory) -> dict[str, Any]:
    """A JSON object."""
    return dataclasses.asdict(memory)


def from_dict(document: dict[str, Any]) -> Memory:
    """The memory that `to_dict` wrote. Raises ValueError: it is of another version or shape."""
    try:
        return cast(Memory, _build(Memory, document))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an autoscaler's memory: {error!r}") from error


def _build(kind: Any, value: Any) -> Any:
    """``value``, from JSON, as the annotated type: a dataclass, a tuple or dict of such, or a plain value."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            raise KeyError(f"fields {sorted(set(value) ^ set(hints))} are unknown or missing")
        return kind(**{name: _build(hints[name], value[name]) for name in hints})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in value)
    if origin is dict:
        return {str(name): _build(arguments[1], item) for name, item in value.items()}
    if origin is types.UnionType:
        return value if value is None else _build(arguments[0], value)
    return kind(value)
