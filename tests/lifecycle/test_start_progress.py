from dataclasses import replace

import pytest

from serving.lifecycle.launch import DeploymentState
from serving.lifecycle.start_progress import StartProgress, Step, changes

POOL = DeploymentState("d", "demo/cpu", "HEALTHY", 2, 0, "")


def test_a_step_ends_when_the_next_one_of_its_track_begins_and_is_told_once() -> None:
    progress = StartProgress()
    progress.begin("demo/cpu", "importing", 1.0)
    progress.begin("gateway", "starting", 2.0)
    progress.begin("demo/cpu", "loading weights", 4.0)
    assert progress.take_ended() == [Step("demo/cpu", "importing", 1.0, 4.0)]
    assert progress.take_ended() == []
    assert [step.label for step in progress.current] == ["gateway: starting", "demo/cpu: loading weights"]


def test_a_step_read_again_from_a_file_changes_nothing() -> None:
    progress = StartProgress()
    for _ in range(2):
        progress.begin("p", "importing", 1.0)
        progress.begin("p", "loading", 2.0)
    progress.end("p", 5.0)
    progress.begin("p", "loading", 2.0)
    assert [(step.name, step.seconds(99.0)) for step in progress.take_ended()] == [("importing", 1.0), ("loading", 3.0)]
    assert progress.current == []


def test_a_running_step_counts_up_to_now() -> None:
    assert Step("", "Ray", 10.0).seconds(12.5) == 2.5
    assert Step("", "Ray", 10.0).label == "Ray"


def test_an_operator_hears_of_a_lost_and_of_a_new_replica() -> None:
    fewer = replace(POOL, num_running=1, status="UPDATING")
    assert list(changes((POOL,), (fewer,))) == [("demo/cpu", "lost a replica (1 running); a new one is being started")]
    assert list(changes((fewer,), (POOL,))) == [("demo/cpu", "2 running")]
    assert list(changes((POOL,), (replace(POOL, status="UNHEALTHY"),))) == [("demo/cpu", "unhealthy")]
    dying = replace(POOL, num_running=1, num_starting=1)
    assert list(changes((POOL,), (dying,))) == [("demo/cpu", "lost a replica (1 running); a new one is being started")]
    assert list(changes((), (POOL,))) == []
    assert list(changes((POOL,), (POOL,))) == []


@pytest.mark.parametrize("status", ["HEALTHY", "DOWNSCALING"])
def test_a_replica_that_was_given_back_is_not_called_lost(status: str) -> None:
    assert list(changes((POOL,), (replace(POOL, num_running=1, status=status),))) == [("demo/cpu", "1 running")]


def test_a_deployment_has_failed_from_its_first_failed_attempt_on() -> None:
    assert replace(POOL, status="UPDATING", message="The deployment failed to start 1 times in a row.").has_failed
    assert replace(POOL, status="DEPLOY_FAILED").has_failed
    assert not POOL.has_failed
