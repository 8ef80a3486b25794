"""What `grammar_mask` must answer."""

import torch

from kernels.sample.reference import unpacked


def masked(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] with -inf where the bit of int32 [N, ceil(V / 32)] is not set."""
    return logits.masked_fill(~torch.from_numpy(unpacked(mask, logits.shape[1])), float("-inf"))
