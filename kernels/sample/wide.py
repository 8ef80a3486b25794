"""Device code of `sample` for rows that `kernel.py` left: more candidates than fit in registers, as in flat rows.

The cut is found by bisection over keys as there, with the row streamed once for every two bits: each pass takes count
and mass at three keys of the range that is left. Bounds on passes: 16 for float32, 8 for bfloat16; blocks whose maximum
cannot matter are never read. A program whose row is not wide leaves at once, so that the host need not know.

Three tuples go through: ``stretch`` is a list of blocks and its length; ``prefix`` a key and an id, which stand for all
tokens above the key and those at it up to the id; ``scaled`` the row's maximum and log2(e) / T.
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
    row_at,
    uniform,
    weight_of,
)
from kernels.sample.kernel import draw_from_block, lowest_kept, ties_needed


@triton.jit
def is_in(prefix, keys, ids):
    return (keys > prefix[0]) | ((keys == prefix[0]) & (ids <= prefix[1]))


@triton.jit
def tally(at, stretch, prefix, a, b, c, scaled, HOW: tl.constexpr, ROWS: tl.constexpr):
    """One pass: how many tokens of the prefix have keys of at least a, b and c, and what they weigh."""
    num_a = tl.zeros((ROWS, BLOCK), tl.int32)
    num_b = tl.zeros((ROWS, BLOCK), tl.int32)
    num_c = tl.zeros((ROWS, BLOCK), tl.int32)
    mass_a = tl.zeros((ROWS, BLOCK), tl.float64)
    mass_b = tl.zeros((ROWS, BLOCK), tl.float64)
    mass_c = tl.zeros((ROWS, BLOCK), tl.float64)
    start = 0
    while start < stretch[1]:
        ids, valid = listed_ids(stretch[0], start, stretch[1], at[1], ROWS)
        keys = read_keys(at, ids, valid, HOW)
        counts = valid & is_in(prefix, keys, ids)
        weights = tl.where(counts, weight_of(logit_of(keys, HOW[2]), scaled[0], scaled[1]), 0.0).to(tl.float64)
        num_a += (counts & (keys >= a)).to(tl.int32)
        num_b += (counts & (keys >= b)).to(tl.int32)
        num_c += (counts & (keys >= c)).to(tl.int32)
        mass_a += tl.where(keys >= a, weights, 0.0)
        mass_b += tl.where(keys >= b, weights, 0.0)
        mass_c += tl.where(keys >= c, weights, 0.0)
        start += ROWS
    return total(num_a), total(num_b), total(num_c), total(mass_a), total(mass_b), total(mass_c)


@triton.jit
def total(x):
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def find_cut(
    at, stretch, prefix, goal, high, scaled, BY_MASS: tl.constexpr, HOW: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """The largest key, of those from the prefix's to ``high``, that tokens of the prefix reach whose number or mass is
    at least ``goal``."""
    low, high = prefix[0].to(tl.int64), high.to(tl.int64)
    while low < high:
        a = low + tl.maximum((high - low) // 4, 1)
        b = low + tl.maximum((high - low) // 2, 1)
        c = low + tl.maximum((high - low) // 4 * 3, 1)
        num_a, num_b, num_c, mass_a, mass_b, mass_c = tally(
            at, stretch, prefix, a.to(tl.int32), b.to(tl.int32), c.to(tl.int32), scaled, HOW, ROWS
        )  # fmt: skip
        if BY_MASS:
            reaches_a, reaches_b, reaches_c = mass_a >= goal, mass_b >= goal, mass_c >= goal
        else:
            reaches_a, reaches_b, reaches_c = num_a >= goal, num_b >= goal, num_c >= goal
        high = tl.where(reaches_c, high, tl.where(reaches_b, c - 1, tl.where(reaches_a, b - 1, a - 1)))
        low = tl.where(reaches_c, c, tl.where(reaches_b, b, tl.where(reaches_a, a, low)))
    return low.to(tl.int32)


@triton.jit
def tie_at(at, stretch, key, num_ties, HOW: tl.constexpr, ROWS: tl.constexpr):
    """The id of the ``num_ties``-th token, by id, with this key; the last if there are fewer."""
    last_tie = -1
    num_seen = 0
    start = 0
    while (start < stretch[1]) & (num_seen < num_ties):
        ids, valid = listed_ids(stretch[0], start, stretch[1], at[1], ROWS)
        ties = (valid & (read_keys(at, ids, valid, HOW) == key)).to(tl.int32)
        taken = (ties != 0) & (num_seen + places_of(ties, ROWS) < num_ties)
        last_tie = tl.maximum(last_tie, tl.max(tl.max(tl.where(taken, ids, -1), axis=1), axis=0))
        num_seen += total(ties)
        start += ROWS
    return last_tie


@triton.jit
def first_k(at, stretch, low, k, high, scaled, HOW: tl.constexpr, ROWS: tl.constexpr):
    """The prefix of k tokens."""
    all_ids = at[1] + 0 * low
    key = find_cut(at, stretch, (low, all_ids), k, high, scaled, False, HOW, ROWS)
    num_above, _, _, _, _, _ = tally(at, stretch, (low, all_ids), key + 1, key, key, scaled, HOW, ROWS)
    return key, tie_at(at, stretch, key, k - num_above, HOW, ROWS)


@triton.jit
def first_mass(at, stretch, prefix, goal, high, scaled, HOW: tl.constexpr, ROWS: tl.constexpr):
    """The shortest prefix of ``prefix`` that weighs ``goal``, and its number of tokens."""
    key = find_cut(at, stretch, prefix, goal, high, scaled, True, HOW, ROWS)
    num_above, num_reach, _, above, _, _ = tally(at, stretch, prefix, key + 1, key, key, scaled, HOW, ROWS)
    num_ties = ties_needed(goal - above, weight_of(logit_of(key, HOW[2]), scaled[0], scaled[1]))
    num_ties = tl.minimum(num_ties, num_reach - num_above)
    return key, tie_at(at, stretch, key, num_ties, HOW, ROWS), num_above + num_ties


@triton.jit
def store_masses(at, stretch, prefix, scaled, mass_ptr, HOW: tl.constexpr, ROWS: tl.constexpr):
    """Write what the prefix's tokens in each listed block weigh, at the block's place in the list."""
    start = 0
    while start < stretch[1]:
        ids, valid = listed_ids(stretch[0], start, stretch[1], at[1], ROWS)
        keys = read_keys(at, ids, valid, HOW)
        weights = weight_of(logit_of(keys, HOW[2]), scaled[0], scaled[1])
        offs = start + tl.arange(0, ROWS)
        mass = tl.sum(tl.where(valid & is_in(prefix, keys, ids), weights, 0.0), axis=1)
        tl.store(mass_ptr + offs, mass, mask=offs < stretch[1])
        start += ROWS
    tl.debug_barrier()  # other threads read them


@triton.jit
def wide_kernel(
    logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr,
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, position_ptr,
    max_ptr, sum_ptr, list_ptr, token_ptr, num_kept_ptr, wide_ptr, V, NB,
    HOW: tl.constexpr, NB_PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (N,). Decides the rows marked in ``wide``; overwrites their block sums."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(wide_ptr + row) != 0:
        at = row_at(
            row, V, logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr
        )  # fmt: skip
        temperature = tl.load(temperature_ptr + row)
        k = tl.load(top_k_ptr + row)
        p = tl.load(top_p_ptr + row)
        blocks = tl.arange(0, NB_PADDED)
        block_keys = tl.load(max_ptr + row * NB + blocks, mask=blocks < NB, other=lowest_key(HOW[2]))
        high = tl.max(block_keys, axis=0)
        scaled = (logit_of(high, HOW[2]), LOG2_E / temperature)
        low = lowest_kept(scaled[0], tl.load(min_p_ptr + row), temperature, HOW[2])
        if (k > 0) & (k <= NB):
            low = tl.maximum(low, kth_largest(block_keys, k, low - 1, high))
        stretch = (list_ptr + row * NB, list_blocks(block_keys, low, list_ptr + row * NB, NB_PADDED))
        cut = low
        last_tie = V + 0 * low
        num_kept, _, _, mass, _, _ = tally(at, stretch, (cut, last_tie), low, low, low, scaled, HOW, ROWS)
        if (k > 0) & (k < num_kept):
            cut, last_tie = first_k(at, stretch, low, k, high, scaled, HOW, ROWS)
            num_kept, _, _, mass, _, _ = tally(at, stretch, (cut, last_tie), cut, cut, cut, scaled, HOW, ROWS)
        if p < 1.0:
            goal = p.to(tl.float64) * mass
            cut, last_tie, num_kept = first_mass(at, stretch, (cut, last_tie), goal, high, scaled, HOW, ROWS)
        store_masses(at, stretch, (cut, last_tie), scaled, sum_ptr + row * NB, HOW, ROWS)
        masses = tl.load(sum_ptr + row * NB + blocks, mask=blocks < stretch[1], other=0.0).to(tl.float64)
        target = uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row)) * tl.sum(masses, axis=0)
        place, before = first_over(masses, target, NB_PADDED)
        block = tl.load(stretch[0] + place)
        token = draw_from_block(at, block, cut, last_tie, scaled[0], scaled[1], target - before, HOW)
        tl.store(token_ptr + row, token)
        tl.store(num_kept_ptr + row, num_kept)
