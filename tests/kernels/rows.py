"""Rows of logits and settings that several tests use."""

import torch

from kernels.sample.types import Params


def params(num_rows: int = 1, *, first_seed: int = 0, position: int = 0, **settings: float) -> Params:
    """The same settings for all rows, each with a seed of its own."""
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | settings
    return Params(
        temperature=torch.full((num_rows,), chosen["temperature"], dtype=torch.float32),
        top_k=torch.full((num_rows,), int(chosen["top_k"]), dtype=torch.int32),
        top_p=torch.full((num_rows,), chosen["top_p"], dtype=torch.float32),
        min_p=torch.full((num_rows,), chosen["min_p"], dtype=torch.float32),
        seed=torch.arange(first_seed, first_seed + num_rows, dtype=torch.int64),
        position=torch.full((num_rows,), position, dtype=torch.int64),
    )


def rows_of(chosen: Params, indices: list[int]) -> Params:
    """Those rows, in that order."""
    return Params(*(getattr(chosen, name)[indices] for name in Params.__slots__))


def peaked(num_rows: int, num_tokens: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Like a language model's: Zipf's law with exponent 1.5 over shuffled ids, some noise on it."""
    ranks = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(num_rows)])
    noise = torch.randn(num_rows, num_tokens, generator=generator) / 2
    return (15 - 1.5 * torch.log(ranks + 2.0) + noise).to(dtype)


def flat(num_rows: int, num_tokens: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Gaussian: what an untrained model gives, and the worst case of top-p."""
    return torch.randn(num_rows, num_tokens, generator=generator).to(dtype)
