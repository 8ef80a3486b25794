"""What came of a simulated run: cost, SLO, latencies, actions."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at one decision, for the timeline."""

    at_s: float
    num_arrived: int
    num_missed: int
    num_waiting: int
    targets: tuple[int, ...]
    num_ready: tuple[int, ...]
    num_starting: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one policy on one trace with one seed."""

    num_requests: int
    num_met: int
    num_refused: int
    num_ttft_missed: int
    num_tpot_missed: int
    prompt_tokens: int
    output_tokens: int
    usd: float
    replica_hours: tuple[float, ...]
    """By pool, billed: from the decision to start a replica until it is gone."""
    idle_hours: tuple[float, ...]
    """By pool: ready, with nothing to do."""
    served: tuple[int, ...]
    """Requests finished by each pool."""
    num_starts: tuple[int, ...]
    num_stops: tuple[int, ...]
    """Starts that were given up (`num_aborted`) among them."""
    num_aborted: tuple[int, ...]
    """Starts given up before the replica was ready."""
    ttft_s: "array[float]"
    tpot_s: "array[float]"
    wall_s: float
    """What the simulation itself took."""
    decide_s: float
    """Of that, in the policy."""
    timeline: Sequence[Sample]

    @property
    def slo(self) -> float:
        """Share of all requests that met the SLO; a refused one did not."""
        return self.num_met / self.num_requests

    @property
    def slo_of_admitted(self) -> float:
        return self.num_met / max(1, self.num_requests - self.num_refused)

    @property
    def usd_per_million_tokens(self) -> float:
        return self.usd / (self.prompt_tokens + self.output_tokens) * 1e6

    @property
    def usd_per_million_output_tokens(self) -> float:
        return self.usd / self.output_tokens * 1e6


def percentile(values: "array[float]", share: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
