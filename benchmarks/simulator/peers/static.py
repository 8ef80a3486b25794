"""A fleet that never changes: what most deployments are."""

from collections.abc import Sequence

from benchmarks.simulator.fleet import View
from benchmarks.simulator.scenario import Scenario


class Static:
    """``num_replicas`` of the first primary pool, and the others' minimum."""

    def __init__(self, scenario: Scenario, num_replicas: int = 1) -> None:
        self._targets = [pool.replicas.min for pool in scenario.pools]
        self._targets[scenario.primary_index] = num_replicas

    def targets(self, view: View) -> Sequence[int]:
        return self._targets
