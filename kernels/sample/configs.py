"""Sizes and warps of the sampler's kernels. A table, chosen by vocabulary and type and never by the batch: sums would
otherwise be added in another order in another batch. No autotuning while serving.

Derived from registers and bytes in flight, not yet tuned on a device (2026-11, for H100 and H200): a tile is 4 to 8 KB
of logits for 128 threads; 1024 candidates are 4 for each of 256 threads.
"""

from dataclasses import dataclass

import torch

BLOCK = 128
"""Tokens of a block; `kernels.sample.device.BLOCK`."""

KEY_SHIFT = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
"""Bits of a float32 that widening leaves equal (`kernels.sample.device`)."""


@dataclass(frozen=True, slots=True)
class Config:
    tile: int = 16
    """Blocks of 128 tokens that one program of the first stage reads."""
    stats_warps: int = 4
    rows: int = 16
    """Blocks read again at a time."""
    capacity: int = 1024
    """Candidates that a row may have before it is wide."""
    nucleus_blocks: int = 128
    """With top-p alone, the block whose maximum bounds the candidates."""
    draw_warps: int = 8
    wide_rows: int = 16
    wide_warps: int = 16


CONFIG = Config()
