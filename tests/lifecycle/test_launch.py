from pathlib import Path

import pytest

from serving.config import load_config
from serving.lifecycle.launch import (
    DeploymentsEvent,
    DeploymentState,
    Event,
    FailedEvent,
    Launch,
    StepEvent,
    decode_event,
    encode_event,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["ballast.yaml", "ballast.cuda.yaml"])
def test_a_launch_arrives_as_it_was_sent(name: str) -> None:
    launch = Launch(load_config(ROOT / name), "/tmp/ballast-x", "scripted", {"step_s": 0.5})
    assert Launch.decode(launch.encode()) == launch


@pytest.mark.parametrize(
    "event",
    [
        StepEvent("Ray"),
        FailedEvent("why\nand how", 3),
        DeploymentsEvent((DeploymentState("d", "demo/cpu", "UPDATING", 0, 1, "waiting"),)),
    ],
)
def test_an_event_is_one_line_and_arrives_as_it_was_sent(event: Event) -> None:
    line = encode_event(event)
    assert line.count(b"\n") == 1
    assert decode_event(line) == event
