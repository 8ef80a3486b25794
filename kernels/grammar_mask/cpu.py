"""The structured-output bitmask on the CPU.

`sample` takes the bitmask as it is and reads no block without an allowed token, which is the fast way. `apply` is for
logits that something else is to see masked. Lists of allowed ids become a bitmask with `allow_only`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from kernels.compiled import entry, inlined, over_rows
from kernels.lanes import BF16, BLOCK, FP16, FP32, forbid, mask_block, word
from kernels.sample.blocks import is_set
from kernels.sample.matrix import matrix_of

_ALL = np.uint64(2**64 - 1)


def apply(logits: torch.Tensor, mask: torch.Tensor) -> None:
    """Overwrites with -inf the logits [N, V] (bfloat16, float16 or float32, any row stride) whose bit in ``mask``,
    int32 [N, ceil(V / 32)], is not set. Reads and writes each logit once at most, in its own type.

    Raises:
        ValueError: a tensor is not of such a type and shape.
    """
    matrix = matrix_of(logits, mask)
    num_rows, num_tokens = logits.shape
    over_rows(num_rows, num_tokens, lambda first, last: mask_rows(first, last, matrix))


def allow_only(ids: Iterable[int], num_tokens: int) -> torch.Tensor:
    """A row of bitmask, int32 [ceil(V / 32)], that allows these ids; those outside the vocabulary are left out."""
    allowed = np.zeros(-(-num_tokens // 32) * 32, np.uint8)
    inside = [token for token in ids if 0 <= token < num_tokens]
    allowed[inside] = 1
    return torch.from_numpy(np.packbits(allowed, bitorder="little").view(np.int32))


@entry
def mask_rows(first: int, last: int, matrix: Any) -> None:
    """Rows ``first`` to ``last - 1`` of a `Matrix`, in place."""
    size = 4 if matrix.kind == FP32 else 2
    full = matrix.num_tokens // BLOCK * BLOCK
    for n in range(first, last):
        address, mask = matrix.address + n * matrix.stride, matrix.mask + n * matrix.mask_stride
        for token in range(0, full, BLOCK):
            bits = mask + token // 8
            if not word(64, bits) == word(64, bits + 8) == _ALL:
                _mask_block(matrix.kind, address + size * token, bits)
        for token in range(full, matrix.num_tokens):
            if not is_set(mask, token):
                _forbid(matrix.kind, address + size * token)


@inlined
def _mask_block(kind: int, address: int, mask: int) -> None:
    if kind == BF16:
        mask_block(BF16, address, mask)
    elif kind == FP16:
        mask_block(FP16, address, mask)
    else:
        mask_block(FP32, address, mask)


@inlined
def _forbid(kind: int, address: int) -> None:
    if kind == BF16:
        forbid(BF16, address)
    elif kind == FP16:
        forbid(FP16, address)
    else:
        forbid(FP32, address)
