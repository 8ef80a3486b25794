"""A change of the config on its way: what is deployed when, what is told, and the way back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.config import Config
from serving.deployments import config_version
from serving.errors import MachineError
from serving.lifecycle.applying import Applying
from serving.lifecycle.control import Report
from serving.lifecycle.launch import DeploymentState, Rollout

TIMEOUT_S = 60.0


def config(*pools: str, usd_per_hour: float = 0.1) -> Config:
    given: list[dict[str, Any]] = [
        {"name": name, "device": "cpu", "cpus_per_replica": 1.0, "usd_per_hour": usd_per_hour} for name in pools
    ]
    data = {"models": [{"name": "demo", "source": "owner/name", "pools": given}]}
    return Config.model_validate(data, context={"base_dir": Path("/")})


def state(status: str = "HEALTHY", message: str = "", num_starting: int = 0) -> DeploymentState:
    return DeploymentState("demo.cpu", "demo/cpu", status, 1, num_starting, message)


class FakeCluster:
    """Does what it is told, and says what a test wants it to."""

    def __init__(self) -> None:
        self.deployed: list[Config] = []
        self.has_no_room = False
        self.status = "DEPLOYING"
        self.states: list[DeploymentState] = [state("UPDATING")]

    def check_room(self, config: Config) -> None:
        if self.has_no_room:
            raise MachineError("no room")

    def redeploy(self, config: Config) -> None:
        self.deployed.append(config)
        self.status = "DEPLOYING"

    def rollout(self) -> Rollout:
        return Rollout(self.status, "it says")

    def deployments(self) -> Sequence[DeploymentState]:
        return self.states


def kinds(reports: Sequence[Report]) -> list[str]:
    return [report.kind for report in reports]


OLD, NEW = config("cpu"), config("cpu", usd_per_hour=0.2)


def begun(old: Config = OLD, new: Config = NEW) -> tuple[FakeCluster, Applying]:
    cluster = FakeCluster()
    return cluster, Applying(cluster, old, new, TIMEOUT_S, 0.0)


def test_a_change_is_applied_when_all_of_it_runs() -> None:
    cluster, change = begun()
    assert kinds(list(change.look(1.0))) == ["step"]
    assert list(change.look(2.0)) == [], "what has been said is not said again"
    cluster.status = "RUNNING"
    [report] = change.look(3.0)
    assert report == Report("applied", f"config {config_version(NEW)} is in force")
    assert change.has_ended
    assert change.config == NEW
    assert cluster.deployed == [NEW]


def test_a_pool_goes_when_those_that_stay_are_up() -> None:
    old, new = config("a", "b"), config("b", "c")
    cluster, change = begun(old, new)
    list(change.look(1.0))
    assert [[pool.name for pool in each.models[0].pools] for each in cluster.deployed] == [["b", "c", "a"]]
    cluster.status = "RUNNING"
    assert "applied" not in kinds(list(change.look(2.0)))
    assert cluster.deployed[1:] == [new]
    cluster.status = "RUNNING"
    assert kinds(list(change.look(3.0))) == ["applied"]


def test_a_replica_that_fails_to_start_takes_all_of_it_back() -> None:
    cluster, change = begun()
    cluster.states = [state("UPDATING", "The deployment failed to start 1 times: x\nValueError: no such dtype")]
    back = list(change.look(1.0))[-1]
    assert "demo/cpu could not be started: ValueError: no such dtype" in back.message
    assert f"going back to config {config_version(OLD)}" in back.message
    assert cluster.deployed == [NEW, OLD]
    assert not change.has_ended
    cluster.status, cluster.states = "RUNNING", [state()]
    last = list(change.look(2.0))[-1]
    assert last.kind == "failed"
    assert last.message.endswith(f"the old config {config_version(OLD)} is in force")
    assert change.has_ended
    assert change.config == OLD


def test_what_ray_serve_gives_up_is_taken_back() -> None:
    cluster, change = begun()
    cluster.status = "DEPLOY_FAILED"
    assert "Ray Serve cannot run it: it says" in list(change.look(1.0))[-1].message
    assert cluster.deployed == [NEW, OLD]


def test_what_takes_too_long_is_taken_back_and_what_it_waits_for_named() -> None:
    cluster, change = begun()
    cluster.states = [state("UPDATING", "no node has 8 GPUs", num_starting=1)]
    assert kinds(list(change.look(TIMEOUT_S))) == ["step"]
    [back] = change.look(TIMEOUT_S + 1.0)
    assert "not done within 60 s; still waiting for demo/cpu (no node has 8 GPUs)" in back.message
    assert cluster.deployed == [NEW, OLD]


def test_a_way_back_that_takes_too_long_too_is_told_as_what_it_is() -> None:
    cluster, change = begun()
    cluster.status = "DEPLOY_FAILED"
    list(change.look(1.0))
    cluster.status = "DEPLOYING"
    assert list(change.look(TIMEOUT_S)) == []
    [last] = change.look(TIMEOUT_S + 2.0)
    assert last.kind == "failed"
    assert "is being restored, and not whole yet" in last.message
    assert change.has_ended


def test_nothing_is_touched_where_there_is_no_room() -> None:
    cluster = FakeCluster()
    cluster.has_no_room = True
    with pytest.raises(MachineError):
        Applying(cluster, OLD, NEW, TIMEOUT_S, 0.0)
    assert cluster.deployed == []
