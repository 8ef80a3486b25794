"""`sample` on a GPU: three launches, one more for edits and one for logprobs, and the host waits for none.

Nothing that is allocated or launched depends on data, so a call may be captured in a CUDA graph. The algorithm is in
`kernel.py`; what is promised is the contract of `kernels.sample.types`, held to the oracle of `reference.py`. A mask is
applied inside the first reading (`kernels.grammar_mask`): blocks with no allowed token are not read.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from kernels.logprobs.op import RawStats, from_stats
from kernels.sample.configs import BLOCK, CONFIG, KEY_SHIFT
from kernels.sample.kernel import block_stats_kernel, draw_kernel, mark_edits_kernel
from kernels.sample.types import Edits, Params, Sampled
from kernels.sample.wide import wide_kernel


@dataclass(frozen=True, slots=True)
class _Scratch:
    """What the launches of one call leave for each other. NB blocks of 128 tokens a row, in tiles."""

    max: torch.Tensor
    """int32 [N, NB]: keys."""
    sum: torch.Tensor
    """float32 [N, NB]: of exp((x - block maximum) / T); where no sum is needed, anything."""
    tiles: torch.Tensor
    """int32 [N, ceil(NB / tile)]: tokens that may be chosen, and a bit for a NaN."""
    lists: torch.Tensor
    """int32 [N, NB]: blocks to read again."""
    candidates: torch.Tensor
    """int32 [2, N, capacity]: keys and ids."""
    is_wide: torch.Tensor
    """int32 [N]."""

    @staticmethod
    def empty(num_rows: int, num_tokens: int, device: torch.device) -> "_Scratch":
        num_blocks = triton.cdiv(num_tokens, BLOCK)

        def ints(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        return _Scratch(
            max=ints(num_rows, num_blocks),
            sum=torch.empty(num_rows, num_blocks, dtype=torch.float32, device=device),
            tiles=ints(num_rows, triton.cdiv(num_blocks, CONFIG.tile)),
            lists=ints(num_rows, num_blocks),
            candidates=ints(2, num_rows, CONFIG.capacity),
            is_wide=ints(num_rows),
        )


def sample(
    logits: torch.Tensor,
    params: Params,
    mask: torch.Tensor | None = None,
    edits: Edits | None = None,
    num_logprobs: int | None = None,
) -> Sampled:
    """One token for each row.

    Args:
        logits: [N, V] bfloat16, float16 or float32, any row stride; not written.
        params: of each row.
        mask: int32 [N, ceil(V / 32)], any row stride: a token may be chosen if its bit is set, token 0 the lowest bit.
        edits: logits that stand in place of the row's own; ids in [0, V).
        num_logprobs: of how many of the likeliest the logprobs are wanted too, 0 to 20.

    Raises:
        ValueError: shapes or types other than these.
    """
    _check(logits, params, mask, edits)
    num_rows, num_tokens = logits.shape
    token = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    num_kept = torch.empty_like(token)
    status = torch.empty(num_rows, dtype=torch.uint8, device=logits.device)
    raw = None if num_logprobs is None else RawStats.empty(logits)
    if num_rows:
        scratch = _Scratch.empty(num_rows, num_tokens, logits.device)
        source = _source(logits, mask, edits, absent=params.top_k)
        shift = 0 if edits is not None else KEY_SHIFT[logits.dtype]  # an edit is a float32
        how = (mask is not None, edits is not None, shift)
        _launch(source, how, params, raw, scratch, Sampled(token, num_kept, status))
    found = None if num_logprobs is None or raw is None else from_stats(logits, token, num_logprobs, raw)
    return Sampled(token, num_kept, status, found)


def _launch(
    source: tuple[Any, ...],
    how: tuple[bool, bool, int],
    params: Params,
    raw: RawStats | None,
    scratch: _Scratch,
    out: Sampled,
) -> None:
    num_tokens = source[0].shape[1]
    num_rows, num_blocks = scratch.max.shape
    num_tiles = scratch.tiles.shape[1]
    padded = triton.next_power_of_2(num_blocks)
    settings = (params.temperature, params.top_k, params.top_p, params.min_p, params.seed, params.position)
    block_stats_kernel[(num_rows, num_tiles)](
        *source, params.temperature, params.top_k, params.min_p, scratch.max, scratch.sum, scratch.tiles,
        scratch.sum if raw is None else raw.max, scratch.sum if raw is None else raw.sum, num_tokens, num_blocks,
        SAMPLES=True, RAW=raw is not None, TILE=CONFIG.tile, num_warps=CONFIG.stats_warps, HOW=how,
    )  # fmt: skip
    draw_kernel[(num_rows,)](
        *source, *settings, scratch.max, scratch.sum, scratch.tiles, scratch.lists, *scratch.candidates,
        out.token, out.num_kept, out.status, scratch.is_wide, num_tokens, num_blocks, num_tiles,
        NB_PADDED=padded, NT_PADDED=triton.next_power_of_2(num_tiles), ROWS=CONFIG.rows, CAPACITY=CONFIG.capacity,
        NUCLEUS_BLOCKS=CONFIG.nucleus_blocks, num_warps=CONFIG.draw_warps, HOW=how,
    )  # fmt: skip
    wide_kernel[(num_rows,)](
        *source, *settings, scratch.max, scratch.sum, scratch.lists, out.token, out.num_kept, scratch.is_wide,
        num_tokens, num_blocks,
        NB_PADDED=padded, ROWS=CONFIG.wide_rows, num_warps=CONFIG.wide_warps, HOW=how,
    )  # fmt: skip


def _source(
    logits: torch.Tensor, mask: torch.Tensor | None, edits: Edits | None, absent: torch.Tensor
) -> tuple[Any, ...]:
    """The kernels' first arguments: where the rows are, and what is put over them. ``absent`` is never read."""
    num_rows, num_tokens = logits.shape
    num_words = triton.cdiv(num_tokens, 32)
    masks = (absent, 0) if mask is None else (mask, mask.stride(0))
    if edits is None:
        return (logits, logits.stride(0), *masks, absent, absent, num_words, absent)
    touched = torch.zeros(num_rows, num_words, dtype=torch.int32, device=logits.device)
    rank = torch.empty_like(touched)
    mark_edits_kernel[(num_rows,)](edits.offsets, edits.ids, touched, rank, num_words, SIZE=1024, num_warps=4)
    return (logits, logits.stride(0), *masks, touched, rank, num_words, edits.logits)


def _check(logits: torch.Tensor, params: Params, mask: torch.Tensor | None, edits: Edits | None) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0 or logits.dtype not in KEY_SHIFT or logits.stride(1) != 1:
        raise ValueError(f"logits: {logits.dtype} {tuple(logits.shape)}, must be [N, V] of floats with tokens adjacent")
    num_rows, num_tokens = logits.shape
    wanted: dict[str, tuple[torch.Tensor, torch.dtype, tuple[int, ...]]] = {
        name: (getattr(params, name), dtype, (num_rows,))
        for name, dtype in (
            ("temperature", torch.float32),
            ("top_k", torch.int32),
            ("top_p", torch.float32),
            ("min_p", torch.float32),
            ("seed", torch.int64),
            ("position", torch.int64),
        )
    }
    if edits is not None:
        wanted["edits.offsets"] = edits.offsets, torch.int32, (num_rows + 1,)
        wanted["edits.ids"] = edits.ids, torch.int32, tuple(edits.logits.shape)
        wanted["edits.logits"] = edits.logits, torch.float32, tuple(edits.ids.shape)
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, must be contiguous {dtype} {shape}")
    words = (num_rows, triton.cdiv(num_tokens, 32))
    if mask is not None and (mask.dtype != torch.int32 or tuple(mask.shape) != words or mask.stride(1) != 1):
        raise ValueError(f"mask: {mask.dtype} {tuple(mask.shape)}, must be int32 {words} with words adjacent")
