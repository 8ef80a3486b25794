"""What `sample` takes and gives. Sizes: N rows of logits, V tokens of the vocabulary, M edits, K logprobs asked for.

All tensors are contiguous and on the device of the logits; what belongs to a row stands at the row's index, so that no
answer depends on which other rows are there.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch

GREEDY_BELOW = 1e-5
"""A temperature below this takes the likeliest token, as vLLM does."""


@dataclass(frozen=True, slots=True)
class Params:
    """How each row is to be sampled."""

    temperature: torch.Tensor
    """float32 [N]; below `GREEDY_BELOW`: the likeliest token, the lowest id among equals."""
    top_k: torch.Tensor
    """int32 [N]; 0: off."""
    top_p: torch.Tensor
    """float32 [N], in (0, 1]; 1: off."""
    min_p: torch.Tensor
    """float32 [N], in [0, 1]; 0: off."""
    seed: torch.Tensor
    """int64 [N]."""
    position: torch.Tensor
    """int64 [N], of the token to be drawn in its sequence: with ``seed`` it names the random number."""


@dataclass(frozen=True, slots=True)
class Edits:
    """Logits that are other than the tensor says: penalties and biases touch few tokens, so they travel alone."""

    offsets: torch.Tensor
    """int32 [N + 1]: those of row n are ``offsets[n]`` to ``offsets[n + 1]``."""
    ids: torch.Tensor
    """int32 [M], ascending within a row."""
    logits: torch.Tensor
    """float32 [M]: they stand in place of the row's own."""


class Status(IntEnum):
    """What was wrong with a row; the others are not affected."""

    OK = 0
    NAN = 1
    """It has a NaN, which counts as -inf."""
    NOTHING = 2
    """No token may be chosen: all are masked, -inf or NaN. The token is 0."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of the raw logits (before temperature, edits and mask), natural logarithm."""

    ids: torch.Tensor
    """int32 [N, 1 + K]: the token of the row, then the K likeliest in canonical order."""
    logprobs: torch.Tensor
    """float32 [N, 1 + K]."""
    rank: torch.Tensor
    """int32 [N]: how many tokens are at least as likely as the row's own; the likeliest has 1."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What became of each row."""

    token: torch.Tensor
    """int32 [N]."""
    num_kept: torch.Tensor
    """int32 [N]: how many tokens the filters left."""
    status: torch.Tensor
    """uint8 [N], of `Status`."""
    logprobs: Logprobs | None = None
