"""Device code of `logprobs`: from the block statistics of the raw row, and the few blocks that can matter.

The n likeliest tokens lie in blocks whose maximum reaches the n-th largest one, and the rank of a token is counted in
those that reach it. An unlikely token's rank reads the row once more.
"""

import triton
import triton.language as tl

from kernels.sample.device import (
    BLOCK,
    LOG2_E,
    NEG_INF,
    gather,
    key_of,
    kth_largest,
    list_blocks,
    listed_ids,
    logit_of,
    lowest_key,
    read_keys,
    row_at,
    weight_of,
)

FIRST = tl.constexpr(9223372036854775807)
NONE = tl.constexpr(-9223372036854775808)


@triton.jit
def order_of(keys, ids):
    """A number that is larger the earlier a token comes in canonical order."""
    return (keys.to(tl.int64) << 32) | (2147483647 - ids).to(tl.int64)


@triton.jit
def logprob_of(x, top, log_mass):
    finite = tl.where(x == NEG_INF, NEG_INF, tl.where(x == top, 0.0, x - top) - log_mass)
    return tl.where(top == NEG_INF, NEG_INF, finite)


@triton.jit
def next_listed(at, stretch, previous, HOW: tl.constexpr, ROWS: tl.constexpr):
    """The order of the first token after ``previous``, of all in the listed blocks."""
    best = tl.full((ROWS, BLOCK), NONE, tl.int64)
    start = 0
    while start < stretch[1]:
        ids, valid = listed_ids(stretch[0], start, stretch[1], at[1], ROWS)
        order = order_of(read_keys(at, ids, valid, HOW), ids)
        best = tl.maximum(best, tl.where(valid & (order < previous), order, NONE))
        start += ROWS
    return tl.max(tl.max(best, axis=1), axis=0)


@triton.jit
def rank_of(at, stretch, key, HOW: tl.constexpr, ROWS: tl.constexpr):
    """How many tokens of the listed blocks have at least this key."""
    count = tl.zeros((ROWS, BLOCK), tl.int32)
    start = 0
    while start < stretch[1]:
        ids, valid = listed_ids(stretch[0], start, stretch[1], at[1], ROWS)
        count += (valid & (read_keys(at, ids, valid, HOW) >= key)).to(tl.int32)
        start += ROWS
    return tl.sum(tl.sum(count, axis=1), axis=0)


@triton.jit
def store_likeliest(
    at, block_keys, high, top, log_mass, list_ptr, keys_ptr, found_ids_ptr, ids_ptr, logprobs_ptr, NB, K,
    HOW: tl.constexpr, NB_PADDED: tl.constexpr, ROWS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Write ids and logprobs of the first K tokens in canonical order; -1 and -inf where there is none."""
    low = lowest_key(HOW[2]) + 0 * high
    if K <= NB:
        low = tl.maximum(low, kth_largest(block_keys, K, low, high))
    stretch = (list_ptr, list_blocks(block_keys, low, list_ptr, NB_PADDED))
    num_found = gather(at, list_ptr, stretch[1], low, keys_ptr, found_ids_ptr, HOW, ROWS, CAPACITY)
    places = tl.arange(0, CAPACITY)
    mask = places < num_found
    keys = tl.load(keys_ptr + places, mask=mask, other=0)
    order = order_of(keys, tl.load(found_ids_ptr + places, mask=mask, other=0))
    previous = tl.full((), FIRST, tl.int64)
    for i in range(K):
        if num_found > CAPACITY:  # so many equals: look for each in the row
            previous = next_listed(at, stretch, previous, HOW, ROWS)
        else:
            previous = tl.max(tl.where(mask & (order < previous), order, NONE), axis=0)
        exists = previous > NONE
        x = logit_of((previous >> 32).to(tl.int32), HOW[2])
        tl.store(ids_ptr + i, tl.where(exists, 2147483647 - (previous & 0xFFFFFFFF).to(tl.int32), -1))
        tl.store(logprobs_ptr + i, tl.where(exists, logprob_of(x, top, log_mass), NEG_INF))


@triton.jit
def logprob_kernel(
    logits_ptr, logits_stride, token_ptr, raw_max_ptr, raw_sum_ptr, list_ptr, keys_ptr, found_ids_ptr,
    ids_ptr, logprobs_ptr, rank_ptr, V, NB, K,
    HOW: tl.constexpr, NB_PADDED: tl.constexpr, ROWS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Grid (N,)."""
    row = tl.program_id(0).to(tl.int64)
    absent = logits_ptr  # a raw row has no mask and no edits
    at = row_at(row, V, logits_ptr, logits_stride, absent, 0, absent, absent, 0, absent)
    blocks = tl.arange(0, NB_PADDED)
    block_max = tl.load(raw_max_ptr + row * NB + blocks, mask=blocks < NB, other=NEG_INF)
    block_sum = tl.load(raw_sum_ptr + row * NB + blocks, mask=blocks < NB, other=0.0)
    block_keys = tl.where(blocks < NB, key_of(block_max, HOW[2]), -2147483648)
    top = tl.max(block_max, axis=0)
    mass = tl.sum(block_sum.to(tl.float64) * weight_of(block_max, top, LOG2_E).to(tl.float64), axis=0)
    log_mass = tl.log(tl.maximum(mass, 1.0).to(tl.float32))

    token = tl.load(token_ptr + row)
    own = tl.load(at[0] + token, mask=(token >= 0) & (token < V), other=NEG_INF).to(tl.float32)
    own = tl.where(own == own, own, NEG_INF)
    key = key_of(own, HOW[2])
    stretch = (list_ptr + row * NB, list_blocks(block_keys, key, list_ptr + row * NB, NB_PADDED))
    ids_ptr += row * (K + 1)
    logprobs_ptr += row * (K + 1)
    tl.store(ids_ptr, token)
    tl.store(logprobs_ptr, logprob_of(own, top, log_mass))
    tl.store(rank_ptr + row, rank_of(at, stretch, key, HOW, ROWS))
    if K > 0:
        tl.debug_barrier()  # the list is read no more
        store_likeliest(
            at, block_keys, key_of(top, HOW[2]), top, log_mass, list_ptr + row * NB, keys_ptr + row * CAPACITY,
            found_ids_ptr + row * CAPACITY, ids_ptr + 1, logprobs_ptr + 1, NB, K, HOW, NB_PADDED, ROWS, CAPACITY,
        )  # fmt: skip
