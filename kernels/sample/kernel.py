"""Device code of `sample`: one read of the logits into block statistics, then one program a row that decides.

What a row keeps is a prefix of its tokens in canonical order (logit descending, id ascending), whatever filters cut it:
all tokens above some key, and of those at that key the first few ids. The k-th largest block maximum bounds the k-th
largest token from below, so every token that can be kept lies in a block whose maximum reaches it; those few blocks are
read again, their tokens above the bound gathered in ascending order of ids, and the cut is found among them by
bisection over keys. Rows with more than ``CAPACITY`` candidates are left to `wide.py`.

Sums of more than one block are in float64 and their order depends on V alone: the answer is the same bit for bit in any
batch.
"""

import triton
import triton.language as tl

from kernels.sample.device import (
    BLOCK,
    LOG2_E,
    NEG_INF,
    first_over,
    gather,
    key_at_least,
    key_of,
    kth_largest,
    list_blocks,
    logit_of,
    lowest_key,
    read,
    read_keys,
    row_at,
    uniform,
    weight_of,
)

GREEDY_BELOW = tl.constexpr(1e-5)
NAN_FLAG = tl.constexpr(1 << 30)
STATUS_NOTHING = tl.constexpr(2)


@triton.jit
def is_greedy(temperature):
    """Whether it is below 1e-5; the float32 nearest to that is."""
    return temperature <= GREEDY_BELOW


@triton.jit
def block_stats_kernel(
    logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr,
    temperature_ptr, top_k_ptr, min_p_ptr,
    max_ptr, sum_ptr, tile_ptr, raw_max_ptr, raw_sum_ptr, V, NB,
    SAMPLES: tl.constexpr, RAW: tl.constexpr, HOW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (N, ceil(NB / TILE)). Per block of the edited and masked row: the largest key, and where the row will need
    it the sum of exp((x - block maximum) / T); per tile how many tokens may be chosen, and whether there is a NaN. With
    RAW also maximum and sum of the raw row at T = 1."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    at = row_at(
        row, V, logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr
    )  # fmt: skip
    blocks = tile * TILE + tl.arange(0, TILE)
    ids = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    out = row * NB + blocks
    if SAMPLES:
        x = read(at, ids, ids < V, HOW)
        has_nan = tl.max(tl.max((x != x).to(tl.int32), axis=1), axis=0)
        x = tl.where(x == x, x, NEG_INF)
        top = tl.max(x, axis=1)
        tl.store(max_ptr + out, key_of(top, HOW[2]), mask=blocks < NB)
        temperature = tl.load(temperature_ptr + row)
        info = has_nan * NAN_FLAG
        if (is_greedy(temperature) == 0) & (tl.load(top_k_ptr + row) <= 0) & (tl.load(min_p_ptr + row) <= 0.0):
            total = tl.sum(weight_of(x, top[:, None], LOG2_E / temperature), axis=1)
            tl.store(sum_ptr + out, tl.where(top == NEG_INF, 0.0, total), mask=blocks < NB)
            info += tl.sum(tl.sum((x > NEG_INF).to(tl.int32), axis=1), axis=0)
        tl.store(tile_ptr + row * tl.num_programs(1) + tile, info)
    if RAW:
        raw = tl.load(at[0] + ids, mask=ids < V, other=NEG_INF).to(tl.float32)
        raw = tl.where(raw == raw, raw, NEG_INF)
        raw_top = tl.max(raw, axis=1)
        total = tl.sum(weight_of(raw, raw_top[:, None], LOG2_E), axis=1)
        tl.store(raw_max_ptr + out, raw_top, mask=blocks < NB)
        tl.store(raw_sum_ptr + out, tl.where(raw_top == NEG_INF, 0.0, total), mask=blocks < NB)


@triton.jit
def mark_edits_kernel(offsets_ptr, ids_ptr, touched_ptr, rank_ptr, bitmap_stride, SIZE: tl.constexpr):
    """Grid (N,). Sets the bits of the edited tokens, and where a word's first edit stands."""
    row = tl.program_id(0).to(tl.int64)
    touched_ptr += row * bitmap_stride
    rank_ptr += row * bitmap_stride
    begin = tl.load(offsets_ptr + row)
    end = tl.load(offsets_ptr + row + 1)
    for start in range(begin, end, SIZE):
        offs = start + tl.arange(0, SIZE)
        mask = offs < end
        ids = tl.load(ids_ptr + offs, mask=mask, other=0)
        previous = tl.load(ids_ptr + offs - 1, mask=mask & (offs > begin), other=-1)
        tl.atomic_or(touched_ptr + (ids >> 5), 1 << (ids & 31), mask=mask)
        tl.store(rank_ptr + (ids >> 5), offs, mask=mask & ((previous >> 5) != (ids >> 5)))


@triton.jit
def cut_top_k(keys, kept, k, low, high):
    """Of what is kept, the first k in canonical order; ids ascend with the place."""
    cut = kth_largest(tl.where(kept, keys, low - 1), k, low, high)
    ties = (kept & (keys == cut)).to(tl.int32)
    left = k - tl.sum((kept & (keys > cut)).to(tl.int32), axis=0)
    return kept & ((keys > cut) | ((ties != 0) & (tl.cumsum(ties, axis=0) <= left)))


@triton.jit
def cut_top_p(keys, kept, weights, goal, low, high, top, scale, SHIFT: tl.constexpr):
    """Of what is kept, the shortest canonical prefix that weighs ``goal``; all of it weighs at least that."""
    lowest, highest = low.to(tl.int64), high.to(tl.int64)
    while lowest < highest:
        middle = lowest + (highest - lowest + 1) // 2
        enough = tl.sum(tl.where(kept & (keys >= middle.to(tl.int32)), weights, 0.0), axis=0) >= goal
        lowest = tl.where(enough, middle, lowest)
        highest = tl.where(enough, highest, middle - 1)
    cut = lowest.to(tl.int32)
    above = tl.sum(tl.where(kept & (keys > cut), weights, 0.0), axis=0)
    num_ties = ties_needed(goal - above, weight_of(logit_of(cut, SHIFT), top, scale))
    ties = (kept & (keys == cut)).to(tl.int32)
    return kept & ((keys > cut) | ((ties != 0) & (tl.cumsum(ties, axis=0) <= num_ties)))


@triton.jit
def ties_needed(missing, weight):
    """How many tokens of equal weight make up what is missing; at least one."""
    count = tl.ceil(missing / tl.maximum(weight, 1e-38).to(tl.float64))
    return tl.minimum(tl.maximum(count, 1.0), 2147483647.0).to(tl.int32)


@triton.jit
def draw_from_block(at, block, low, last_tie, top, scale, target, HOW: tl.constexpr):
    """The token of one block at which the running weight is over ``target``. Kept are those above ``low``, and at it
    up to the id ``last_tie``."""
    ids = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    keys = read_keys(at, ids, ids < at[1], HOW)
    kept = (keys > low) | ((keys == low) & (ids <= last_tie))
    weights = tl.where(kept, weight_of(logit_of(keys, HOW[2]), top, scale), 0.0).to(tl.float64)
    place, _ = first_over(tl.reshape(weights, (BLOCK,)), target, BLOCK)
    return block * BLOCK + place


@triton.jit
def draw_greedy(at, block_keys, high, HOW: tl.constexpr, NB_PADDED: tl.constexpr):
    """The lowest id of the maximum."""
    block = tl.min(tl.where(block_keys == high, tl.arange(0, NB_PADDED), NB_PADDED), axis=0)
    ids = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    keys = read_keys(at, ids, ids < at[1], HOW)
    return tl.min(tl.min(tl.where(keys == high, ids, at[1]), axis=1), axis=0)


@triton.jit
def draw_candidate(
    keys, ids_ptr, num_found, is_partial, mass, k, p, u, low, high, scale,
    HOW: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Cut and draw among candidates in ascending order of ids, the first ``num_found`` of CAPACITY.

    ``is_partial``: they are not all that top-k and min-p left, which weighs ``mass``. Token, how many were kept, and
    whether the candidates did not suffice.
    """
    top = logit_of(high, HOW[2])
    kept = tl.arange(0, CAPACITY) < num_found
    weights = tl.where(kept, weight_of(logit_of(keys, HOW[2]), top, scale), 0.0).to(tl.float64)
    if (k > 0) & (k < num_found):
        kept = cut_top_k(keys, kept, k, low, high)
    found_mass = tl.sum(tl.where(kept, weights, 0.0), axis=0)
    goal = p.to(tl.float64) * tl.where(is_partial, mass, found_mass)
    if p < 1.0:
        kept = cut_top_p(keys, kept, weights, goal, low, high, top, scale, HOW[2])
    weights = tl.where(kept, weights, 0.0)
    place, _ = first_over(weights, u * tl.sum(weights, axis=0), CAPACITY)
    token = tl.load(ids_ptr + place)
    num_kept = tl.sum(kept.to(tl.int32), axis=0)
    return token, num_kept, ((num_found > CAPACITY) | (is_partial & (found_mass < goal))).to(tl.int32)


@triton.jit
def draw_random(
    at, settings, u, block_keys, sum_ptr, num_choosable, high, room, NB,
    HOW: tl.constexpr, NB_PADDED: tl.constexpr, ROWS: tl.constexpr, CAPACITY: tl.constexpr,
    NUCLEUS_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Token, how many were kept, and whether the row is wide, which leaves the other two without meaning.

    settings: top-k, top-p, min-p, temperature. room: pointers to a list of blocks and to candidates' keys and ids.
    """
    k, p, min_p, temperature = settings
    list_ptr, keys_ptr, ids_ptr = room
    top = logit_of(high, HOW[2])
    scale = LOG2_E / temperature
    blocks = tl.arange(0, NB_PADDED)
    has_sums = (k <= 0) & (min_p <= 0.0) & (top < float("inf"))
    masses = tl.load(sum_ptr + blocks, mask=(blocks < NB) & has_sums, other=0.0).to(tl.float64)
    masses = masses * weight_of(logit_of(block_keys, HOW[2]), top, scale).to(tl.float64)
    mass = tl.sum(masses, axis=0)
    token = 0
    num_kept = num_choosable
    is_wide = 0
    if has_sums & (p >= 1.0):
        block, before = first_over(masses, u * mass, NB_PADDED)
        token = draw_from_block(at, block, lowest_key(HOW[2]), -1, top, scale, u * mass - before, HOW)
    else:
        low = lowest_kept(top, min_p, temperature, HOW[2])
        num_wanted = tl.where(has_sums, NUCLEUS_BLOCKS, k)
        if (num_wanted > 0) & (num_wanted <= NB):
            low = tl.maximum(low, kth_largest(block_keys, num_wanted, low - 1, high))
        num_blocks = list_blocks(block_keys, low, list_ptr, NB_PADDED)
        num_found = gather(at, list_ptr, num_blocks, low, keys_ptr, ids_ptr, HOW, ROWS, CAPACITY)
        places = tl.arange(0, CAPACITY)
        keys = tl.load(keys_ptr + places, mask=places < num_found, other=lowest_key(HOW[2]))
        token, num_kept, is_wide = draw_candidate(
            keys, ids_ptr, num_found, has_sums, mass, k, p, u, low, high, scale, HOW, CAPACITY
        )  # fmt: skip
    return token, num_kept, is_wide


@triton.jit
def draw_kernel(
    logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr,
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, position_ptr,
    max_ptr, sum_ptr, tile_ptr, list_ptr, keys_ptr, ids_ptr,
    token_ptr, num_kept_ptr, status_ptr, wide_ptr, V, NB, NT,
    HOW: tl.constexpr, NB_PADDED: tl.constexpr, NT_PADDED: tl.constexpr, ROWS: tl.constexpr,
    CAPACITY: tl.constexpr, NUCLEUS_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Grid (N,). Decides every row but those it marks in ``wide``."""
    row = tl.program_id(0).to(tl.int64)
    at = row_at(
        row, V, logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr
    )  # fmt: skip
    blocks = tl.arange(0, NB_PADDED)
    block_keys = tl.load(max_ptr + row * NB + blocks, mask=blocks < NB, other=lowest_key(HOW[2]))
    high = tl.max(block_keys, axis=0)
    tiles = tl.arange(0, NT_PADDED)
    info = tl.load(tile_ptr + row * NT + tiles, mask=tiles < NT, other=0)
    status = tl.max(info >> 30, axis=0)
    temperature = tl.load(temperature_ptr + row)
    token = 0
    num_kept = 0
    is_wide = 0
    if high == lowest_key(HOW[2]):
        status = status * 0 + STATUS_NOTHING
    elif is_greedy(temperature):
        token = draw_greedy(at, block_keys, high, HOW, NB_PADDED)
        num_kept = 1
    else:
        settings = (tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row), temperature)
        u = uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row))
        num_choosable = tl.sum(info & (NAN_FLAG - 1), axis=0)
        room = (list_ptr + row * NB, keys_ptr + row * CAPACITY, ids_ptr + row * CAPACITY)
        token, num_kept, is_wide = draw_random(
            at, settings, u, block_keys, sum_ptr + row * NB, num_choosable, high, room, NB,
            HOW, NB_PADDED, ROWS, CAPACITY, NUCLEUS_BLOCKS,
        )  # fmt: skip
    tl.store(token_ptr + row, token)
    tl.store(num_kept_ptr + row, num_kept)
    tl.store(status_ptr + row, status.to(tl.uint8))
    tl.store(wide_ptr + row, is_wide)


@triton.jit
def lowest_kept(top, min_p, temperature, SHIFT: tl.constexpr):
    """The lowest key that min-p leaves: x >= max + T ln(min_p); of a row with +inf only those."""
    low = lowest_key(SHIFT) + 1
    if min_p > 0.0:
        low = tl.maximum(low, key_at_least(top + temperature * tl.log(min_p), SHIFT))
    return tl.where(top == float("inf"), key_of(top, SHIFT), low)
