"""What Ray Serve's controller is told, whatever it tells; Ray itself does not run here."""

import json
import queue
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.autoscaler.controller import ModelAutoscaler
from serving.autoscaler.decisions import FILE_NAME, Decision, read_file
from serving.autoscaler.serve_policy import DECISION_INTERVAL_S, PLACEMENT_INTERVAL_S, FleetPolicy
from serving.autoscaler.stop_order import Streams
from serving.clock import ManualClock
from serving.config import Config
from serving.protocol.board import Board
from serving.protocol.stats import DemandStats, PoolStats
from tests.autoscaler.test_controller import CPU, GPU

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's, about itself
    from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
    from ray.serve.config import AutoscalingContext

GUARD_S = 10.0
"""Longer than the policy's thread needs for anything."""
CONFIG = Config.model_validate({"models": [{"name": "demo", "source": "owner/name", "pools": [GPU, CPU]}]})
RECOMMENDING = Config.model_validate(CONFIG.model_dump(mode="json") | {"autoscaler": {"mode": "recommend"}})
DEPLOYMENTS = [["demo", "gpu", "demo.gpu"], ["demo", "cpu", "demo.cpu"]]


class FakeCluster:
    """``Cluster``: one node, and what was published; ``is_lost``: it answers nothing."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources or {"CPU": 16.0, "GPU": 8.0}
        self.boards: queue.SimpleQueue[Board] = queue.SimpleQueue()
        self.is_lost = False
        self.streams: Streams = dict

    def stop_least_busy(self, streams: Streams) -> None:
        self.streams = streams

    def publish(self, board: Board) -> None:
        if self.is_lost:
            raise ConnectionError("no GCS")
        self.boards.put(board)

    def nodes(self) -> Sequence[Mapping[str, float]]:
        if self.is_lost:
            raise ConnectionError("no GCS")
        return [self.resources]


def identity(name: str) -> DeploymentID:
    return DeploymentID(name, "ballast")


def context(name: str, num_running: int = 0, target: int | None = None, **changes: Any) -> AutoscalingContext:
    running = [ReplicaID(f"{name}-{number}", identity(name)) for number in range(num_running)]
    fields = dict.fromkeys(
        ("total_num_requests", "total_queued_requests", "aggregated_metrics", "raw_metrics", "last_scale_up_time",
         "last_scale_down_time", "current_time", "config")
    )  # fmt: skip
    return AutoscalingContext(
        **fields
        | {
            "deployment_id": identity(name), "deployment_name": name, "app_name": "ballast",
            "current_num_replicas": num_running, "target_num_replicas": num_running if target is None else target,
            "running_replicas": running, "capacity_adjusted_min_replicas": 0, "capacity_adjusted_max_replicas": 8,
            "policy_state": {},
        }
        | changes
    )  # fmt: skip


def reported(stats: Mapping[str, float], gateway: str = "g") -> dict[str, Any]:
    """A gateway's figures as Ray Serve hands them over: by name, by replica, with their times."""
    who = ReplicaID(gateway, identity("gateway"))
    return {name: {who: [TimeStampedValue(1.0, -1.0), TimeStampedValue(2.0, value)]} for name, value in stats.items()}


class World:
    """A policy, the controller that asks it, and a load."""

    def __init__(self, folder: Path, config: Config = CONFIG, cluster: FakeCluster | None = None) -> None:
        self.clock, self.cluster, self.folder = ManualClock(), cluster or FakeCluster(), folder
        kwargs = {"config": config.model_dump(mode="json"), "deployments": DEPLOYMENTS, "folder": str(folder)}
        kwargs = json.loads(json.dumps(kwargs))
        self.policy = FleetPolicy(**kwargs, cluster=self.cluster, clock=self.clock.monotonic_s)
        self.num_running = {"gpu": 0, "cpu": 0}
        self.num_arrived = 0.0

    def ask(self, num_arrived: float = 0.0, pools: Sequence[str] = ("gpu", "cpu")) -> dict[str, int]:
        """One question, with so many more requests than at the last. Returns targets by pool."""
        self.num_arrived += num_arrived
        total = self.num_arrived
        stats = DemandStats(
            num_arrived=total, prompt_tokens=1000 * total, num_finished=total, output_tokens=200 * total, num_met=total
        ).as_stats("demo", [int(total)] * 20)
        contexts = [context("gateway", 1, raw_metrics=reported(stats))]
        contexts += [context(f"demo.{pool}", self.num_running[pool]) for pool in pools]
        return self.answer(*contexts)

    def answer(self, *contexts: AutoscalingContext) -> dict[str, int]:
        targets, state = self.policy({each.deployment_id: each for each in contexts})
        assert state is None
        return {identity.name.removeprefix("demo."): target for identity, target in targets.items()}

    def run(self, num_decisions: int, num_arrived: float = 0.0) -> list[dict[str, int]]:
        answers = []
        for _ in range(num_decisions):
            self.clock.advance(DECISION_INTERVAL_S)
            answers.append(self.ask(num_arrived))
        return answers

    def board(self) -> Board:
        return self.cluster.boards.get(timeout=GUARD_S)

    def close(self) -> list[Decision]:
        """End it; returns what it has recorded."""
        self.policy._scribe.close()
        self.policy._scribe.join(GUARD_S)
        assert not self.policy._scribe.is_alive()
        return [entry for entry in read_file(self.folder / FILE_NAME) if isinstance(entry, Decision)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    started = World(tmp_path)
    yield started
    started.policy._scribe.close()


# ------------------------------------------------------------------------------------------------------------ decisions


def test_a_load_that_gateways_report_gets_replicas(world: World) -> None:
    answers = world.run(30, num_arrived=20.0)
    assert answers[-1]["gpu"] >= 1
    assert set(answers[-1]) == {"gpu", "cpu"}, "the gateways' number is not ours to change"


def test_it_decides_every_two_seconds_and_answers_from_memory_in_between(world: World) -> None:
    world.run(30, num_arrived=20.0)
    before = world.ask()
    for _ in range(9):
        world.clock.advance(DECISION_INTERVAL_S / 10)
        assert world.ask(num_arrived=1e6) == before
    assert before["gpu"] >= 1
    assert len(world.close()) == 30


def test_in_between_it_answers_for_those_that_are_asked_for(world: World) -> None:
    world.run(30, num_arrived=20.0)
    assert set(world.ask(pools=["cpu"])) == {"cpu"}


def test_it_only_records_where_it_is_not_to_act(tmp_path: Path) -> None:
    world = World(tmp_path, RECOMMENDING)
    assert world.run(30, num_arrived=20.0) == [{}] * 30
    decisions = world.close()
    assert len(decisions) == 30
    assert decisions[-1].plan.targets["gpu"] >= 1
    assert not any(decision.is_applied for decision in decisions)


@pytest.mark.parametrize("num_running", [1, 8])
def test_after_a_restart_of_the_controller_nothing_is_scaled_down(world: World, num_running: int) -> None:
    """The primary pool for `relearn_s`, a fallback pool for `min_hold_s`."""
    world.num_running = {"gpu": num_running, "cpu": 3}
    answers = world.run(100)
    assert [answer["gpu"] for answer in answers] == [num_running] * 100
    assert [answer["cpu"] for answer in answers[:30]] == [3] * 30


def test_a_pool_that_ray_serve_has_not_taken_in_yet_is_not_taken_for_an_empty_one(world: World) -> None:
    world.clock.advance(DECISION_INTERVAL_S)
    assert world.ask(pools=["cpu"]) == {}
    world.num_running = {"gpu": 3, "cpu": 0}
    assert world.run(5)[-1] == {"gpu": 3, "cpu": 0}


def test_the_config_that_crosses_to_the_controller_arrives_as_it_was() -> None:
    assert Config.model_validate(json.loads(json.dumps(CONFIG.model_dump(mode="json")))) == CONFIG


# ------------------------------------------------------------------------------------------------------ it never raises


def broken() -> dict[str, Any]:
    raise RuntimeError("Ray's own code failed")


NAN = float("nan")
STATS = DemandStats(*[NAN] * 10).as_stats("demo", [1] * 20) | PoolStats(*[NAN] * 12).as_stats("demo", "gpu")
HUGE = {name: float("inf") for name in STATS}


@pytest.mark.parametrize(
    "contexts",
    [
        {},
        None,
        {identity("demo.gpu"): object()},
        {identity("stranger"): context("stranger")},
        {identity("gateway"): context("gateway", raw_metrics=broken)},
        {identity("demo.gpu"): context("demo.gpu", running_replicas=None)},
        {identity("demo.gpu"): context("demo.gpu", target_num_replicas=None)},
        {identity("demo.gpu"): context("demo.gpu", target_num_replicas=NAN)},
    ],
)
def test_whatever_ray_says_it_does_not_raise_and_goes_on(world: World, contexts: Any) -> None:
    world.clock.advance(DECISION_INTERVAL_S)
    assert world.policy(contexts) == ({}, None)
    assert world.run(30, num_arrived=20.0)[-1]["gpu"] >= 1


@pytest.mark.parametrize(
    "metrics",
    [None, {}, {"demo/num_arrived": {}}, {"demo/num_arrived": {ReplicaID("g", identity("gateway")): []}},
     reported(STATS), reported(HUGE)],
)  # fmt: skip
def test_whatever_gateways_say_a_decision_is_made(world: World, metrics: Any) -> None:
    for _ in range(3):
        world.clock.advance(DECISION_INTERVAL_S)
        answer = world.answer(
            context("gateway", 1, raw_metrics=metrics), context("demo.gpu", 2), context("demo.cpu", 0)
        )
        assert answer == {"gpu": 2, "cpu": 0}


def test_without_any_gateway_the_fleet_stays(world: World) -> None:
    for _ in range(3):
        world.clock.advance(DECISION_INTERVAL_S)
        assert world.answer(context("demo.gpu", 2), context("demo.cpu", 1)) == {"gpu": 2, "cpu": 1}


def test_a_decision_that_fails_is_logged_and_leaves_the_fleet_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.run(30, num_arrived=20.0)
    before = world.ask()
    with monkeypatch.context() as patched:
        patched.setattr(ModelAutoscaler, "decide", lambda *_: 1 / 0)
        assert world.run(3) == [before] * 3
        assert world.ask() == before
    assert "ZeroDivisionError" in caplog.text
    assert world.run(1, num_arrived=20.0)[-1]["gpu"] >= before["gpu"]


# ----------------------------------------------------------------------------------------------------------- its thread


def test_gateways_are_told_of_every_decision(world: World) -> None:
    answers = world.run(3, num_arrived=20.0)
    for answer in answers:
        assert {pool: told.target for pool, told in world.board().models["demo"].pools.items()} == answer


def test_ray_is_told_which_replicas_are_busy_by_all_gateways_together(world: World) -> None:
    of_each = [
        reported(DemandStats().as_stats("demo", []) | DemandStats.as_streams(streams), gateway)
        for gateway, streams in (("g", {"r0": 2, "r1": 1}), ("h", {"r0": 3}))
    ]
    metrics = {
        name: {who: series for each in of_each for who, series in each.get(name, {}).items()} for name in of_each[0]
    }
    world.clock.advance(DECISION_INTERVAL_S)
    world.answer(context("gateway", 2, raw_metrics=metrics), context("demo.gpu", 2), context("demo.cpu"))
    assert world.cluster.streams() == {"r0": 5.0, "r1": 1.0}


def test_a_pool_that_no_node_has_a_device_for_gets_nothing_until_one_comes(tmp_path: Path) -> None:
    world = World(tmp_path, cluster=FakeCluster(CPU=16.0))
    assert world.run(30, num_arrived=20.0)[-1]["gpu"] == 0
    for _ in range(30):
        assert not world.board().models["demo"].pools["gpu"].is_available
    world.cluster.resources = {"CPU": 16.0, "GPU": 1.0}
    for _ in range(20):  # it looks again when it has told of a decision
        world.clock.advance(PLACEMENT_INTERVAL_S + 1.0)
        world.ask(num_arrived=100.0)
        if world.board().models["demo"].pools["gpu"].is_available:
            break
    assert world.run(1, num_arrived=20.0)[-1]["gpu"] >= 1
    world.close()


def test_a_cluster_that_does_not_answer_stops_nothing(tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.is_lost = True
    world = World(tmp_path, cluster=cluster)
    assert world.run(30, num_arrived=20.0)[-1]["gpu"] >= 1
    world.clock.advance(2 * PLACEMENT_INTERVAL_S)
    world.run(1)
    while not world.policy._scribe._todo.empty():
        pass
    cluster.is_lost = False
    world.run(1)
    assert world.board().models["demo"].pools["gpu"].is_available
    assert len(world.close()) == 32


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    world = World(tmp_path / "file" / "decisions")
    assert world.run(30, num_arrived=20.0)[-1]["gpu"] >= 1
    assert world.board().models["demo"].pools["gpu"].is_available
    world.policy._scribe.close()


def test_a_policy_that_is_replaced_leaves_no_thread(tmp_path: Path) -> None:
    world = World(tmp_path)
    thread: threading.Thread = world.policy._scribe
    del world.policy
    world.cluster.stop_least_busy(dict)  # as the one that takes its place does
    thread.join(GUARD_S)
    assert not thread.is_alive()
