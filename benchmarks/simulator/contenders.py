"""Every policy by name, with the settings among which hindsight may choose for it.

Ours has one setting for all traces. A peer is given, for each trace, the setting that turned out best on it: the
cheapest that meets the objective, else the one that comes nearest to it. Peers scale the first primary pool, because
none of them knows a second kind. All use our router, which helps them, so that what differs is the policy alone;
`ray-stock` is Ray Serve as it comes, with its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.simulator.fleet import Policy
from benchmarks.simulator.ours import Ours
from benchmarks.simulator.peers.aibrix import Aibrix
from benchmarks.simulator.peers.dynamo import Dynamo
from benchmarks.simulator.peers.hpa import Hpa
from benchmarks.simulator.peers.kpa import Kpa
from benchmarks.simulator.peers.ray_serve import RayServe
from benchmarks.simulator.peers.static import Static
from benchmarks.simulator.peers.wva import Wva
from benchmarks.simulator.scenario import Scenario

_RAY_TARGETS = (2.0, 16.0, 32.0, 48.0, 64.0, 96.0)

Setting = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, how it is made, and its settings; the first one is its literal default where it has one."""

    make: Callable[..., Policy]
    settings: tuple[Setting, ...]
    has_default: bool = True
    has_plain_router: bool = False
    """Runs with the router that comes with it instead of ours."""
    initial: Callable[[Setting], int | None] = field(default=lambda _: None)
    """Replicas that are up when the trace starts, if that depends on the setting."""


CONTENDERS: Mapping[str, Contender] = {
    "ours": Contender(Ours, ({},)),
    "ray": Contender(RayServe, tuple({"target_ongoing_requests": target} for target in _RAY_TARGETS)),
    "ray-stock": Contender(
        RayServe, tuple({"target_ongoing_requests": target} for target in _RAY_TARGETS), has_plain_router=True
    ),
    "hpa": Contender(Hpa, tuple({"target": target} for target in (16.0, 4.0, 8.0, 32.0, 64.0))),
    "kpa": Contender(
        Kpa,
        (
            *({"target": target} for target in (70.0, 8.0, 16.0, 32.0)),
            {"target": 64.0, "scale_down_delay_s": 60.0},
        ),
    ),
    "wva": Contender(Wva, ({}, {"scale_up": 0.6, "scale_down": 0.45})),
    "aibrix": Contender(
        Aibrix,
        (
            *({"utilisation": share} for share in (0.7, 0.85, 1.0)),
            {"utilisation": 0.7, "uses_current": True},
            {"utilisation": 0.85, "least": 0},
        ),
    ),
    "dynamo": Contender(
        Dynamo,
        (
            *({"utilisation": share} for share in (0.7, 0.85, 1.0)),
            *({"utilisation": share, "interval_s": 60.0} for share in (0.7, 1.0)),
            *({"utilisation": share, "interval_s": 60.0, "has_trend": True} for share in (0.85, 1.0)),
        ),
    ),
    "static": Contender(
        Static,
        tuple({"num_replicas": number} for number in (1, 2, 3, 4, 6)),
        has_default=False,
        initial=lambda setting: int(setting["num_replicas"]),
    ),
}


def fleet_for(name: str, setting: Setting, scenario: Scenario) -> Scenario:
    """The scenario that a contender runs in: its own number of replicas up at the start, where it says so."""
    number = CONTENDERS[name].initial(setting)
    if number is None:
        return scenario
    pools = tuple(
        pool.model_copy(update={"replicas": pool.replicas.model_copy(update={"initial": number})})
        if index == scenario.primary_index
        else pool
        for index, pool in enumerate(scenario.pools)
    )
    return scenario.model_copy(update={"pools": pools})
