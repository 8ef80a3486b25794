"""The inputs of a decode step, row by row."""

import torch

from kernels.prepare_decode.types import NO_SLOT, Requests, Step


def prepare_decode(requests: Requests, block_size: int, step: Step) -> None:
    """Fill ``step`` in place: each request goes on by the one token that it sampled last."""
    for row, slot in enumerate(requests.slots.tolist()):
        if slot == NO_SLOT:
            step.input_ids[row] = step.positions[row] = step.seq_lens[row] = 0
            step.block_table[row] = 0
            step.slot_mapping[row] = NO_SLOT
            continue
        position = int(requests.num_computed_tokens[slot])
        num_blocks = position // block_size + 1
        blocks = requests.block_table[slot, :num_blocks].to(torch.int64)
        step.input_ids[row] = requests.last_tokens[slot]
        step.positions[row] = position
        step.seq_lens[row] = position + 1
        step.block_table[row, :num_blocks] = requests.block_table[slot, :num_blocks]
        step.slot_mapping[row] = blocks[-1] * block_size + position % block_size
