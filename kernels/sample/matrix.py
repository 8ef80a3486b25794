"""What the compiled kernels are given in place of tensors."""

import threading
from typing import Any

import numpy as np
import torch

from kernels.lanes import BF16, BLOCK, FP16, FP32
from kernels.sample.cut import Tokens
from kernels.sample.rows import Matrix, Room

_KINDS = {torch.bfloat16: BF16, torch.float16: FP16, torch.float32: FP32}


def matrix_of(logits: torch.Tensor, mask: torch.Tensor | None = None) -> Matrix:
    """Addresses of logits [N, V] and mask int32 [N, ceil(V / 32)]; the tensors must outlive it.

    Raises:
        ValueError: a shape, a type or a layout is not as `kernels.sample.cpu.sample` says.
    """
    num_rows, num_tokens = logits.shape
    if logits.dtype not in _KINDS or logits.stride(1) != 1 or logits.device.type != "cpu" or num_tokens == 0:
        raise ValueError(
            f"logits must be rows of bfloat16, float16 or float32 on the CPU, not {logits.dtype} {logits.shape}"
        )
    if mask is not None and (
        mask.dtype != torch.int32 or mask.shape != (num_rows, -(-num_tokens // 32)) or mask.stride(1) != 1
    ):
        raise ValueError(f"for logits {tuple(logits.shape)}, mask is {mask.dtype} {tuple(mask.shape)}")
    return Matrix(
        kind=_KINDS[logits.dtype],
        address=logits.data_ptr(),
        stride=logits.stride(0) * logits.element_size(),
        num_tokens=num_tokens,
        mask=0 if mask is None else mask.data_ptr(),
        mask_stride=0 if mask is None else 4 * mask.stride(0),
    )


def array_of(tensor: torch.Tensor, dtype: torch.dtype) -> Any:
    """The tensor's memory, as the kernels are compiled to read it.

    Raises:
        ValueError: it is of another type, or not contiguous.
    """
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"a contiguous tensor of {dtype} is needed, not {tensor.dtype} with strides {tensor.stride()}")
    return tensor.numpy()


_rooms = threading.local()


def room_for(num_tokens: int) -> Room:
    """The calling thread's own."""
    if getattr(_rooms, "num_tokens", None) != num_tokens:
        _rooms.num_tokens, _rooms.room = num_tokens, _new_room(-(-num_tokens // BLOCK))
    room: Room = _rooms.room
    return room


def _new_room(num_blocks: int) -> Room:
    def per_block(dtype: type[np.generic]) -> Any:
        """Read in vectors beyond its end, and therefore the start of a longer array."""
        return np.zeros(-(-num_blocks // BLOCK) * BLOCK, dtype)[:num_blocks]

    def tokens() -> Tokens:
        size = (num_blocks + 1) * BLOCK
        return Tokens(np.empty(size, np.int32), np.empty(size, np.float32), np.empty(size, np.float32))

    return Room(
        maxima=per_block(np.float32),
        sums=per_block(np.float32),
        peaks=per_block(np.float32),
        keys=per_block(np.int32),
        patched=per_block(np.uint8),
        patches=np.empty(num_blocks * BLOCK, np.float32),
        tail=np.empty(BLOCK, np.float32),
        tokens=tokens(),
        spare=tokens(),
    )
