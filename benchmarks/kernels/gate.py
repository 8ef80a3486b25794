"""No speed-up is printed for an op whose answers are wrong."""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.kernels.cases import Case
from kernels.sample import cpu, reference
from kernels.sample.types import Params

_ROOT = Path(__file__).resolve().parents[2]
_TESTS = {
    "sample": ["test_sample_reference.py", "test_sample_cpu.py", "test_sample_batch.py", "test_lanes.py"],
    "logprobs": ["test_logprobs_cpu.py"],
    "penalties": ["test_penalties_cpu.py"],
    "grammar_mask": ["test_grammar_mask_cpu.py"],
}


def self_check() -> bool:
    """A few rows of a few modes against the oracle, in this process; seconds."""
    logits = torch.randn(6, 5003, generator=torch.Generator().manual_seed(0)).mul(3).bfloat16()
    params = Params(
        temperature=torch.tensor([0.0, 0.8, 0.8, 0.8, 0.8, 0.8]),
        top_k=torch.tensor([0, 0, 50, 0, 50, 0], dtype=torch.int32),
        top_p=torch.tensor([1.0, 1.0, 1.0, 0.9, 0.9, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.05]),
        seed=torch.arange(6),
        position=torch.arange(6),
    )
    ours, expected = cpu.sample(logits, params), reference.sample(logits, params)
    return bool(torch.equal(ours.token, expected.token) and torch.equal(ours.num_kept, expected.num_kept))


def red_ops() -> list[str]:
    """The ops whose tests fail; all of them if the self-check does."""
    if not self_check():
        return list(_TESTS)
    red = []
    for op, files in _TESTS.items():
        command = [sys.executable, "-m", "pytest", "-q", "-x", *(f"tests/kernels/{file}" for file in files)]
        if subprocess.run(command, cwd=_ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
            red.append(op)
    return red


def is_guarded_by(case: Case, op: str, op_of: dict[str, str]) -> bool:
    """Whether a red ``op`` silences the case: each rests on `sample`, some on another op as well."""
    return op in ("sample", op_of.get(case.mode))
