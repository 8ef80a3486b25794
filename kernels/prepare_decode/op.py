"""The inputs of a decode step in one launch, where vLLM's runner V2 takes four or five.

What it saves is launches: at some 3 to 5 µs of host time each, of the order of 10 µs a step where the host is what
limits. It saves next to no bytes, so a step that the GPU limits gains nothing. A batch in which every request has one
token is all it does; prefills, several KV cache groups and speculation keep vLLM's own kernels.

There is no twin for CPU. There the same work is done by numpy and one C++ operator in 20 to 60 µs of a step of
milliseconds (measured at 1 to 64 requests), and a launch is a function call: nothing is left to save.
"""

import torch
import triton

from kernels.prepare_decode.kernel import prepare_decode_kernel
from kernels.prepare_decode.types import Requests, Step

_BLOCK_B = 256


def prepare_decode(requests: Requests, block_size: int, step: Step) -> None:
    """Fill ``step`` in place: each request goes on by the one token that it sampled last.

    No synchronisation and no allocation: may be captured in a CUDA graph. ``block_size`` is in tokens.

    Raises:
        ValueError: shapes or types other than `Requests` and `Step` say.
    """
    _check(requests, step)
    num_rows = requests.slots.shape[0]
    if num_rows:
        max_blocks = requests.block_table.shape[1]
        prepare_decode_kernel[(num_rows,)](
            requests.slots, requests.last_tokens, requests.num_computed_tokens, requests.block_table,
            step.input_ids, step.positions, step.seq_lens, step.block_table, step.slot_mapping, max_blocks,
            KV_BLOCK_SIZE=block_size, BLOCK_B=min(_BLOCK_B, triton.next_power_of_2(max_blocks)), num_warps=4,
        )  # fmt: skip


def _check(requests: Requests, step: Step) -> None:
    num_rows, (num_slots, max_blocks) = requests.slots.shape[0], requests.block_table.shape
    wanted = {
        "slots": (requests.slots, torch.int32, (num_rows,)),
        "last_tokens": (requests.last_tokens, torch.int32, (num_slots,)),
        "num_computed_tokens": (requests.num_computed_tokens, torch.int32, (num_slots,)),
        "block_table": (requests.block_table, torch.int32, (num_slots, max_blocks)),
        "step.input_ids": (step.input_ids, torch.int32, (num_rows,)),
        "step.positions": (step.positions, torch.int64, (num_rows,)),
        "step.seq_lens": (step.seq_lens, torch.int32, (num_rows,)),
        "step.block_table": (step.block_table, torch.int32, (num_rows, max_blocks)),
        "step.slot_mapping": (step.slot_mapping, torch.int64, (num_rows,)),
    }
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, must be contiguous {dtype} {shape}")
