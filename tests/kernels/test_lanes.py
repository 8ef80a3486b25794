"""The vector instructions: how exact they are, and that they give the same bits on every instruction set."""

import os
import subprocess
import sys

import numpy as np
import torch

from kernels.sample.cpu import sample
from kernels.sample.matrix import room_for
from tests.kernels.rows import params


def test_weights_are_exact_to_their_last_bits() -> None:
    """A block's mass against float64, over logits from the top down to where weights become 0."""
    logits = -torch.rand(1, 128 * 400, generator=torch.Generator().manual_seed(0)) * 30
    logits[0, 0] = 0.0
    sample(logits, params(temperature=0.7))
    exact = np.exp(logits[0].double().numpy() / np.float64(np.float32(0.7))).reshape(400, 128).sum(1)
    np.testing.assert_allclose(room_for(128 * 400).sums, exact, rtol=2.5e-7)


_MASSES = """
import numba, numpy as np
from kernels.lanes import BF16, block_max, block_sum

@numba.njit(error_model="numpy")
def masses(logits, out):
    for block in range(len(out)):
        address = logits.ctypes.data + 256 * block
        scale = block_max(BF16, 0, address, 0), np.float32(2.061), np.float32(1e-8), np.float32(-38.8)
        out[block], _ = block_sum(BF16, 0, address, 0, scale)

logits = np.random.default_rng(0).standard_normal(128 * 64).astype(np.float32).view(np.uint32) >> 16
found = np.empty(64, np.float32)
masses(logits.astype(np.uint16), found)
print(found.tobytes().hex())
"""


def test_sums_have_the_same_bits_with_and_without_avx512() -> None:
    here: dict[str, np.ndarray] = {}
    exec(_MASSES.rpartition("\n")[0].rpartition("\n")[0], here)
    there = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+bmi,+lzcnt"}
    done = subprocess.run([sys.executable, "-c", _MASSES], env=there, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here["found"].tobytes().hex()
