"""Logprobs on a GPU: of sampled tokens, or of a prompt's. Two launches, or one more after `sample`."""

from dataclasses import dataclass

import torch
import triton

from kernels.logprobs.kernel import logprob_kernel
from kernels.sample.configs import BLOCK, CONFIG, KEY_SHIFT
from kernels.sample.kernel import block_stats_kernel
from kernels.sample.types import Logprobs


@dataclass(frozen=True, slots=True)
class RawStats:
    """Of blocks of 128 tokens of raw rows, NB a row."""

    max: torch.Tensor
    """float32 [N, NB]; a NaN counts as -inf."""
    sum: torch.Tensor
    """float32 [N, NB]: of exp(x - block maximum)."""

    @staticmethod
    def empty(logits: torch.Tensor) -> "RawStats":
        shape = logits.shape[0], triton.cdiv(logits.shape[1], BLOCK)
        return RawStats(*(torch.empty(shape, dtype=torch.float32, device=logits.device) for _ in range(2)))


def logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_logprobs: int) -> Logprobs:
    """Of raw logits [N, V] (bfloat16, float16 or float32, any row stride) for the tokens int32 [N], each in [0, V), and
    the ``num_logprobs`` likeliest of each row. As `reference.logprobs`.

    For prompt logprobs the rows are the prompt's positions and the tokens those that follow them.

    Raises:
        ValueError: shapes or types other than these.
    """
    if logits.ndim != 2 or logits.shape[1] == 0 or logits.dtype not in KEY_SHIFT or logits.stride(1) != 1:
        raise ValueError(f"logits: {logits.dtype} {tuple(logits.shape)}, must be [N, V] of floats with tokens adjacent")
    if tokens.dtype != torch.int32 or tuple(tokens.shape) != (logits.shape[0],) or not tokens.is_contiguous():
        raise ValueError(f"tokens: {tokens.dtype} {tuple(tokens.shape)}, must be contiguous int32 [N]")
    stats = RawStats.empty(logits)
    num_rows, num_blocks = stats.max.shape
    if num_rows:
        absent = tokens  # never read
        block_stats_kernel[(num_rows, triton.cdiv(num_blocks, CONFIG.tile))](
            logits, logits.stride(0), absent, 0, absent, absent, 0, absent, absent, absent, absent,
            absent, absent, absent, stats.max, stats.sum, logits.shape[1], num_blocks,
            SAMPLES=False, RAW=True, HOW=(False, False, KEY_SHIFT[logits.dtype]),
            TILE=CONFIG.tile, num_warps=CONFIG.stats_warps,
        )  # fmt: skip
    return from_stats(logits, tokens, num_logprobs, stats)


def from_stats(logits: torch.Tensor, tokens: torch.Tensor, num_logprobs: int, stats: RawStats) -> Logprobs:
    """The same when the statistics are there already."""
    num_rows, num_blocks = stats.max.shape
    device = logits.device
    ids = torch.empty(num_rows, 1 + num_logprobs, dtype=torch.int32, device=device)
    values = torch.empty(num_rows, 1 + num_logprobs, dtype=torch.float32, device=device)
    rank = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows:
        lists = torch.empty(num_rows, num_blocks, dtype=torch.int32, device=device)
        candidates = torch.empty(2, num_rows, CONFIG.capacity, dtype=torch.int32, device=device)
        logprob_kernel[(num_rows,)](
            logits, logits.stride(0), tokens, stats.max, stats.sum, lists, candidates[0], candidates[1],
            ids, values, rank, logits.shape[1], num_blocks, num_logprobs,
            HOW=(False, False, KEY_SHIFT[logits.dtype]), NB_PADDED=triton.next_power_of_2(num_blocks), ROWS=CONFIG.rows,
            CAPACITY=CONFIG.capacity, num_warps=CONFIG.draw_warps,
        )  # fmt: skip
    return Logprobs(ids=ids, logprobs=values, rank=rank)
