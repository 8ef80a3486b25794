"""What a policy sees of the simulated fleet at one decision: the same for every policy, ours and its peers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.simulator.replica import SimRequest


@dataclass(slots=True)
class PoolView:
    """One pool now. ``starting_since_s``: when each replica that is not ready yet was asked for."""

    num_ready: int
    starting_since_s: tuple[float, ...]
    cold_starts_s: tuple[float, ...]
    """How long those took that became ready since the last decision."""
    num_running: int
    """Requests on its replicas."""
    kv_tokens: int
    num_steps: int
    prefill_tokens: int
    decode_tokens: int
    kv_token_steps: float
    busy_s: float
    """This and the four before: work since the last decision."""

    @property
    def num_replicas(self) -> int:
        return self.num_ready + len(self.starting_since_s)


@dataclass(slots=True)
class View:
    """Everything since the last decision, and how things stand. Arrivals and finished requests are given one by one."""

    now_s: float
    interval_s: float
    pools: tuple[PoolView, ...]
    arrived: Sequence[SimRequest]
    finished: Sequence[SimRequest]
    num_met: int
    num_missed: int
    """Requests whose fate against the SLO became known since the last decision."""
    num_queued: int
    """In the gateway, still able to meet their deadline."""
    num_late: int
    """In the gateway, no longer able to."""
    late_prompt_tokens: int
    oldest_late_s: float
    """Age of the oldest of those."""


class Policy(Protocol):
    """A policy under test. Made anew for every run."""

    def targets(self, view: View) -> Sequence[int]:
        """Replicas wanted in each pool, in the scenario's order."""
