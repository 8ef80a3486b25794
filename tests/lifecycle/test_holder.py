"""What of the process that holds Ray can be seen without it."""

import io
from pathlib import Path

import pytest

from serving.config import load_config
from serving.lifecycle.control import InForce
from serving.lifecycle.holder import Holder, may_be_serving
from serving.lifecycle.launch import DeploymentState, Launch

ROOT = Path(__file__).parents[2]


def state(label: str, num_running: int, status: str = "HEALTHY") -> DeploymentState:
    return DeploymentState(label, label, status, num_running, 0, "")


def test_requests_may_be_in_flight_while_another_pool_still_starts() -> None:
    gpu = state("demo/gpu", 0, "UPDATING")
    assert may_be_serving((state("gateway", 1), state("demo/cpu", 1), gpu))
    assert not may_be_serving((state("gateway", 1), gpu))
    assert not may_be_serving((state("gateway", 0, "UPDATING"), state("demo/cpu", 1), gpu))
    assert not may_be_serving(())


def test_a_config_that_could_not_be_written_down_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(ROOT / "ballast.yaml")
    folder = tmp_path / "full"
    holder = Holder(Launch(config, str(folder), "scripted", {}), io.BytesIO())
    holder.tell_config()
    assert "could not be written" in caplog.text
    folder.mkdir()
    holder.tell_config()
    found = InForce.read(folder)
    assert found is not None
    assert found.config == config
