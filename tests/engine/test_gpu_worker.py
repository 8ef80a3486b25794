"""The GPU worker gives its sampler to a model runner V2 that samples, once its weights are there, and to no other."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as GPUModelRunnerV1
from vllm.v1.worker.gpu_worker import Worker

from serving.engine import gpu_setup
from serving.engine.gpu_worker import BallastGpuModelRunner, BallastGpuWorker
from serving.engine.kernel_setup import KernelsUnusable
from serving.engine.sampling_counts import VARIABLE, SamplingCounts
from serving.replica import progress

pytestmark = pytest.mark.engine


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was given to `gpu_setup.install`."""
    monkeypatch.delenv(VARIABLE, raising=False)
    found: list[Any] = []
    monkeypatch.setattr(gpu_setup, "install", lambda *given: found.append(given))
    monkeypatch.setattr(Worker, "load_model", lambda worker: setattr(worker.model_runner, "sampler", "sampler"))
    return found


def worker(kind: type, mode: str, rank: int = 0) -> Any:
    made = BallastGpuWorker.__new__(BallastGpuWorker)
    made.rank = rank
    made.vllm_config = SimpleNamespace(additional_config={"ballast_kernels": mode})
    made.model_runner = kind.__new__(kind)
    return made


def test_the_runner_gets_a_sampler_and_the_pools_counters(
    installed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = SamplingCounts.made()
    monkeypatch.setenv(VARIABLE, counts.path)
    made = worker(GPUModelRunner, "on")
    made.load_model()
    [(runner, mode, given_counts)] = installed
    assert (runner, mode) == (made.model_runner, "on")
    assert type(runner) is BallastGpuModelRunner
    given_counts.set(0, 7)
    assert counts.values()[0] == 7


def test_only_the_first_of_a_tensor_parallel_engines_workers_counts(
    installed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = SamplingCounts.made()
    monkeypatch.setenv(VARIABLE, counts.path)
    steps: list[str] = []
    monkeypatch.setattr(progress, "write_step", steps.append)
    worker(GPUModelRunner, "on", rank=1).load_model()
    installed[0][2].set(0, 7)
    assert counts.values()[0] == 0
    assert steps == []
    worker(GPUModelRunner, "on").load_model()
    assert steps == [progress.WEIGHTS]


def test_a_runner_that_does_not_sample_is_left_alone(installed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "load_model", lambda worker: setattr(worker.model_runner, "sampler", None))
    made = worker(GPUModelRunner, "on")
    made.load_model()
    assert type(made.model_runner) is GPUModelRunner
    assert installed == []


def test_the_old_runner_keeps_vllms_sampler(installed: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    made = worker(GPUModelRunnerV1, "auto")
    with caplog.at_level("WARNING", "ballast.engine"):
        made.load_model()
    assert "not V2" in caplog.text
    assert installed == []
    with pytest.raises(KernelsUnusable, match="not V2"):
        worker(GPUModelRunnerV1, "on").load_model()
