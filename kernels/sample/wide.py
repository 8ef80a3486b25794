"""Device code of `sample` for rows that `kernel.py` left: more candidates than fit in registers, as in flat rows.

The cut is found by bisection over keys as there, with the row streamed once for every two bits: each pass takes count
and mass at three keys of the range that is left. Bounds on passes: 16 for float32, 8 for bfloat16; blocks whose maximum
cannot matter are never read. A program whose row is not wide leaves at once, so that the host need not know.
"""

import triton
import triton.language as tl

from kernels.sample.device import (
    BLOCK,
    LOG2_E,
    first_over,
    kth_largest,
    list_blocks,
    listed_ids,
    logit_of,
    lowest_key,
    places_of,
    read_keys,
    uniform,
    weight_of,
)
from kernels.sample.kernel import draw_from_block, lowest_kept, ties_needed


@triton.jit
def tally(
    row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, a, b, c, cut, last_tie, top, scale,
    HAS_MASK: tl.constexpr, HAS_EDITS: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One pass: how many tokens have keys of at least a, b and c, and what they weigh. Counted are those above ``cut``
    and at it up to the id ``last_tie``."""
    num_a = tl.zeros((ROWS, BLOCK), tl.int32)
    num_b = tl.zeros((ROWS, BLOCK), tl.int32)
    num_c = tl.zeros((ROWS, BLOCK), tl.int32)
    mass_a = tl.zeros((ROWS, BLOCK), tl.float64)
    mass_b = tl.zeros((ROWS, BLOCK), tl.float64)
    mass_c = tl.zeros((ROWS, BLOCK), tl.float64)
    start = 0
    while start < num_blocks:
        ids, valid = listed_ids(list_ptr, start, num_blocks, V, ROWS)
        keys = read_keys(
            row_ptr, ids, valid, mask_ptr, touched_ptr, rank_ptr, edits_ptr, HAS_MASK, HAS_EDITS, SHIFT
        )  # fmt: skip
        counts = valid & ((keys > cut) | ((keys == cut) & (ids <= last_tie)))
        weights = tl.where(counts, weight_of(logit_of(keys, SHIFT), top, scale), 0.0).to(tl.float64)
        num_a += (counts & (keys >= a)).to(tl.int32)
        num_b += (counts & (keys >= b)).to(tl.int32)
        num_c += (counts & (keys >= c)).to(tl.int32)
        mass_a += tl.where(keys >= a, weights, 0.0)
        mass_b += tl.where(keys >= b, weights, 0.0)
        mass_c += tl.where(keys >= c, weights, 0.0)
        start += ROWS
    return (
        tl.sum(tl.sum(num_a, axis=1), axis=0), tl.sum(tl.sum(num_b, axis=1), axis=0),
        tl.sum(tl.sum(num_c, axis=1), axis=0), tl.sum(tl.sum(mass_a, axis=1), axis=0),
        tl.sum(tl.sum(mass_b, axis=1), axis=0), tl.sum(tl.sum(mass_c, axis=1), axis=0),
    )  # fmt: skip


@triton.jit
def find_cut(
    row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, goal, low, high, cut, last_tie,
    top, scale, BY_MASS: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_EDITS: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The largest key in [low, high] such that the tokens which reach it number or weigh at least ``goal``."""
    low, high = low.to(tl.int64), high.to(tl.int64)
    while low < high:
        a = low + tl.maximum((high - low) // 4, 1)
        b = low + tl.maximum((high - low) // 2, 1)
        c = low + tl.maximum((high - low) // 4 * 3, 1)
        num_a, num_b, num_c, mass_a, mass_b, mass_c = tally(
            row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks,
            a.to(tl.int32), b.to(tl.int32), c.to(tl.int32), cut, last_tie, top, scale,
            HAS_MASK, HAS_EDITS, SHIFT, ROWS,
        )  # fmt: skip
        if BY_MASS:
            reaches_a, reaches_b, reaches_c = mass_a >= goal, mass_b >= goal, mass_c >= goal
        else:
            reaches_a, reaches_b, reaches_c = num_a >= goal, num_b >= goal, num_c >= goal
        high = tl.where(reaches_c, high, tl.where(reaches_b, c - 1, tl.where(reaches_a, b - 1, a - 1)))
        low = tl.where(reaches_c, c, tl.where(reaches_b, b, tl.where(reaches_a, a, low)))
    return low.to(tl.int32)


@triton.jit
def tie_at(
    row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, cut, num_ties,
    HAS_MASK: tl.constexpr, HAS_EDITS: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The id of the ``num_ties``-th token, by id, whose key is ``cut``; the last if there are fewer."""
    last_tie = -1
    num_seen = 0
    start = 0
    while (start < num_blocks) & (num_seen < num_ties):
        ids, valid = listed_ids(list_ptr, start, num_blocks, V, ROWS)
        keys = read_keys(
            row_ptr, ids, valid, mask_ptr, touched_ptr, rank_ptr, edits_ptr, HAS_MASK, HAS_EDITS, SHIFT
        )  # fmt: skip
        ties = (valid & (keys == cut)).to(tl.int32)
        taken = (ties != 0) & (num_seen + places_of(ties, ROWS) < num_ties)
        last_tie = tl.maximum(last_tie, tl.max(tl.max(tl.where(taken, ids, -1), axis=1), axis=0))
        num_seen += tl.sum(tl.sum(ties, axis=1), axis=0)
        start += ROWS
    return last_tie


@triton.jit
def store_masses(
    row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, cut, last_tie, top, scale, mass_ptr,
    HAS_MASK: tl.constexpr, HAS_EDITS: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write what the kept tokens of each listed block weigh, at its place in the list."""
    start = 0
    while start < num_blocks:
        ids, valid = listed_ids(list_ptr, start, num_blocks, V, ROWS)
        keys = read_keys(
            row_ptr, ids, valid, mask_ptr, touched_ptr, rank_ptr, edits_ptr, HAS_MASK, HAS_EDITS, SHIFT
        )  # fmt: skip
        kept = valid & ((keys > cut) | ((keys == cut) & (ids <= last_tie)))
        weights = tl.where(kept, weight_of(logit_of(keys, SHIFT), top, scale), 0.0)
        offs = start + tl.arange(0, ROWS)
        tl.store(mass_ptr + offs, tl.sum(weights, axis=1), mask=offs < num_blocks)
        start += ROWS
    tl.debug_barrier()  # other threads read them


@triton.jit
def wide_kernel(
    logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr,
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, position_ptr,
    max_ptr, sum_ptr, list_ptr, token_ptr, num_kept_ptr, wide_ptr, V, NB,
    HAS_MASK: tl.constexpr, HAS_EDITS: tl.constexpr, SHIFT: tl.constexpr,
    NB_PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (N,). Decides the rows marked in ``wide``; overwrites their block sums."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(wide_ptr + row) != 0:
        row_ptr = logits_ptr + row * logits_stride
        mask_ptr += row * mask_stride
        touched_ptr += row * bitmap_stride
        rank_ptr += row * bitmap_stride
        list_ptr += row * NB
        sum_ptr += row * NB
        temperature = tl.load(temperature_ptr + row)
        k = tl.load(top_k_ptr + row)
        p = tl.load(top_p_ptr + row)
        u = uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row))
        blocks = tl.arange(0, NB_PADDED)
        block_keys = tl.load(max_ptr + row * NB + blocks, mask=blocks < NB, other=lowest_key(SHIFT))
        high = tl.max(block_keys, axis=0)
        top = logit_of(high, SHIFT)
        scale = LOG2_E / temperature
        low = lowest_kept(top, tl.load(min_p_ptr + row), temperature, SHIFT)
        if (k > 0) & (k <= NB):
            low = tl.maximum(low, kth_largest(block_keys, k, low - 1, high))
        num_blocks = list_blocks(block_keys, low, list_ptr, NB_PADDED)
        cut = low
        last_tie = V
        num_kept, _, _, mass, _, _ = tally(
            row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, low, low, low,
            low, V, top, scale, HAS_MASK, HAS_EDITS, SHIFT, ROWS,
        )  # fmt: skip
        if (k > 0) & (k < num_kept):
            cut = find_cut(
                row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, k, low, high,
                low, V, top, scale, False, HAS_MASK, HAS_EDITS, SHIFT, ROWS,
            )  # fmt: skip
            num_above, _, _, _, _, _ = tally(
                row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, cut + 1, cut, cut,
                low, V, top, scale, HAS_MASK, HAS_EDITS, SHIFT, ROWS,
            )  # fmt: skip
            last_tie = tie_at(
                row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, cut, k - num_above,
                HAS_MASK, HAS_EDITS, SHIFT, ROWS,
            )  # fmt: skip
            num_kept, _, _, mass, _, _ = tally(
                row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, cut, cut, cut,
                cut, last_tie, top, scale, HAS_MASK, HAS_EDITS, SHIFT, ROWS,
            )  # fmt: skip
        if p < 1.0:
            goal = p.to(tl.float64) * mass
            p_cut = find_cut(
                row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, goal, cut, high,
                cut, last_tie, top, scale, True, HAS_MASK, HAS_EDITS, SHIFT, ROWS,
            )  # fmt: skip
            num_above, num_reach, _, mass, _, _ = tally(
                row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, p_cut + 1, p_cut, p_cut,
                cut, last_tie, top, scale, HAS_MASK, HAS_EDITS, SHIFT, ROWS,
            )  # fmt: skip
            num_ties = ties_needed(goal - mass, weight_of(logit_of(p_cut, SHIFT), top, scale))
            num_ties = tl.minimum(num_ties, num_reach - num_above)
            last_tie = tie_at(
                row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, p_cut, num_ties,
                HAS_MASK, HAS_EDITS, SHIFT, ROWS,
            )  # fmt: skip
            cut = p_cut
            num_kept = num_above + num_ties
        store_masses(
            row_ptr, V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, list_ptr, num_blocks, cut, last_tie, top, scale,
            sum_ptr, HAS_MASK, HAS_EDITS, SHIFT, ROWS,
        )  # fmt: skip
        masses = tl.load(sum_ptr + blocks, mask=blocks < num_blocks, other=0.0).to(tl.float64)
        target = u * tl.sum(masses, axis=0)
        place, before = first_over(masses, target, NB_PADDED)
        token = draw_from_block(
            row_ptr, tl.load(list_ptr + place), V, mask_ptr, touched_ptr, rank_ptr, edits_ptr, cut, last_tie,
            top, scale, target - before, HAS_MASK, HAS_EDITS, SHIFT,
        )  # fmt: skip
        tl.store(token_ptr + row, token)
        tl.store(num_kept_ptr + row, num_kept)
