"""What the autoscaler remembers between decisions: plain values, so that a decision log can hold and replay it."""

from dataclasses import dataclass, field

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
