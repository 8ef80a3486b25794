"""A real engine with Ballast's sampler and without: the same text where that is determined, and with it the same text
alone as in company."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.engine.sampling_counts import Count

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]


def answers(device: str, kernels: str) -> Any:
    command = [sys.executable, "-m", "tests.support.sampling_engine", device, str(ROOT / "models" / "demo"), kernels]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
            ],
        ),
    ],
)
def test_an_engine_writes_what_vllm_writes_and_a_seeded_request_the_same_in_any_company(device: str) -> None:
    ours, stock = (answers(device, kernels) for kernels in ("on", "off"))
    assert (ours["greedy"], ours["penalised"]) == (stock["greedy"], stock["penalised"])
    assert ours["together"] == ours["alone"]
    assert (ours["counts"][Count.IS_ACTIVE], stock["counts"][Count.IS_ACTIVE]) == (1, 0)
    assert ours["counts"][Count.KERNELS] > 100
    assert ours["counts"][Count.STOCK] == ours["counts"][Count.UNSUPPORTED] == stock["counts"][Count.KERNELS] == 0
