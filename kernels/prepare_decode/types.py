"""What a decode step is prepared from and into. Sizes: R request slots, P rows of the step (padded for a CUDA graph),
MAX_BLOCKS KV blocks of the longest context. All tensors are contiguous and on one device."""

from dataclasses import dataclass

import torch

NO_SLOT = -1
"""In `Requests.slots`: a row that only pads the batch. In `Step.slot_mapping`: a token whose KV is stored nowhere."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The state of all requests, and which of them run in this step."""

    slots: torch.Tensor
    """int32 [P], into [R]; `NO_SLOT`: padding."""
    last_tokens: torch.Tensor
    """int32 [R]: the token sampled last, whose KV this step computes."""
    num_computed_tokens: torch.Tensor
    """int32 [R]: tokens whose KV stands in the cache."""
    block_table: torch.Tensor
    """int32 [R, MAX_BLOCKS]: KV blocks in the order of the context."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the model's forward pass reads."""

    input_ids: torch.Tensor
    """int32 [P]; 0 where padded."""
    positions: torch.Tensor
    """int64 [P]; 0 where padded."""
    seq_lens: torch.Tensor
    """int32 [P], with the token of this step; 0 where padded."""
    block_table: torch.Tensor
    """int32 [P, MAX_BLOCKS]: the blocks that ``seq_lens`` reaches; the rest is not written. Padded: all 0, the null
    block."""
    slot_mapping: torch.Tensor
    """int64 [P]: where in the KV cache the token goes, block × block size + place in it; `NO_SLOT` where padded."""

    @staticmethod
    def empty(num_rows: int, max_blocks: int, device: torch.device | str) -> "Step":
        """Buffers to be kept: a CUDA graph reads them at these addresses."""
        return Step(
            input_ids=torch.zeros(num_rows, dtype=torch.int32, device=device),
            positions=torch.zeros(num_rows, dtype=torch.int64, device=device),
            seq_lens=torch.zeros(num_rows, dtype=torch.int32, device=device),
            block_table=torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device),
            slot_mapping=torch.full((num_rows,), NO_SLOT, dtype=torch.int64, device=device),
        )
