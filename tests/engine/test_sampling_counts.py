"""Counters that the engine's process writes and the replica reads."""

import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from serving.engine.sampling_counts import VARIABLE, Count, SamplingCollector, SamplingCounts

_CHILD = """
from serving.engine.sampling_counts import Count, SamplingCounts
counts = SamplingCounts.found()
counts.add(Count.KERNELS, 5)
counts.add(Count.KERNELS, 2)
counts.set(Count.IS_ACTIVE, 1)
"""


def test_a_process_finds_the_counters_that_its_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = SamplingCounts.made()
    subprocess.run([sys.executable, "-c", _CHILD], env={**os.environ, VARIABLE: counts.path}, check=True)
    assert counts.values()[Count.KERNELS] == 7
    registry = CollectorRegistry()
    registry.register(SamplingCollector(counts))
    text = generate_latest(registry).decode()
    assert 'ballast_sampled_rows_total{sampler="kernels"} 7.0' in text
    assert 'ballast_sampled_rows_total{sampler="vllm"} 0.0' in text
    assert "ballast_kernels_active 1.0" in text


def test_a_process_that_is_told_of_none_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    counts = SamplingCounts.found()
    counts.add(Count.NAN, 1)
    assert SamplingCounts.found().values()[Count.NAN] == 0
    monkeypatch.setenv(VARIABLE, counts.path)
    assert SamplingCounts.found().values()[Count.NAN] == 1
