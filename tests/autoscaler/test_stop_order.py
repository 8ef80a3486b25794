"""Which replicas stop first."""

from dataclasses import dataclass
from typing import Any

import pytest

from serving.autoscaler.stop_order import install


@dataclass(frozen=True)
class Replica:
    unique_id: str


A, B, C, D, STARTING = (Replica(name) for name in ("a", "b", "c", "d", "starting"))


def scheduler(running: dict[Replica, str], starting: tuple[Replica, ...] = ()) -> Any:
    """Shaped like Ray's, which takes starting replicas first and then the newest."""

    class Scheduler:
        def __init__(self) -> None:
            self._running_replicas: Any = {"pool": running}

        def _get_replicas_to_stop(self, deployment_id: str, max_num_to_stop: int, gangs: object = None) -> set[Replica]:
            return set([*starting, *reversed(self._running_replicas[deployment_id])][:max_num_to_stop])

    return Scheduler


def stopped(kind: Any, number: int, streams: dict[str, float], *more: object) -> set[Replica]:
    install(kind, lambda: streams)
    found: set[Replica] = kind()._get_replicas_to_stop("pool", number, *more)
    return found


def test_the_least_busy_stop() -> None:
    kind = scheduler({A: "n", B: "n", C: "n"})
    assert stopped(kind, 2, {"a": 1.0, "b": 5.0, "c": 3.0}) == {A, C}


def test_of_equals_the_newest_stops() -> None:
    assert stopped(scheduler({A: "n", B: "n"}), 1, {}) == {B}


def test_what_is_still_starting_stops_before() -> None:
    kind = scheduler({A: "n", B: "n"}, (STARTING,))
    assert stopped(kind, 2, {"a": 0.0, "b": 9.0}) == {STARTING, A}


def test_the_nodes_stay_those_that_ray_empties() -> None:
    kind = scheduler({A: "one", B: "one", C: "two", D: "two"})
    assert stopped(kind, 1, {"a": 0.0, "b": 0.0, "c": 3.0, "d": 7.0}) == {C}


def test_gangs_stay_together() -> None:
    assert stopped(scheduler({A: "n", B: "n"}), 1, {"a": 0.0, "b": 9.0}, {"a": "gang"}) == {B}


def test_where_ray_has_changed_its_own_choice_stands(caplog: pytest.LogCaptureFixture) -> None:
    kind = scheduler({A: "n", B: "n"})
    install(kind, lambda: {"a": 0.0, "b": 9.0})
    picker = kind()
    picker._running_replicas = {"pool": [A, B]}
    assert picker._get_replicas_to_stop("pool", 1) == {B}
    assert "Ray Serve chooses" in caplog.text


def test_a_new_policy_takes_the_place_of_the_old_one() -> None:
    kind = scheduler({A: "n", B: "n"})
    install(kind, lambda: {"a": 0.0, "b": 9.0})
    assert stopped(kind, 1, {"a": 9.0, "b": 0.0}) == {B}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_ray_has_the_method_that_is_wrapped() -> None:
    from ray.serve._private.deployment_scheduler import DeploymentScheduler

    assert callable(DeploymentScheduler._get_replicas_to_stop)
