"""One row of logits as blocks of 128: their maxima, their mass, and the tokens that reach a bound.

Where a row has edits, the blocks they fall into are copied as float32, edited and masked there, and read from there; so
is a last block that is not full. All other blocks are read where they are, in their own type.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.compiled import inlined
from kernels.lanes import (
    BF16,
    BLOCK,
    FP16,
    FP32,
    block_max,
    block_sum,
    copy_block,
    logit,
    lowest_bit,
    num_bits,
    pack_block,
    reaching,
    weigh,
    word,
)

MIN_EXPONENT = -80.0
"""Weights below 2**-80 of the likeliest token's are 0: a million of them add up to less than half a unit in the last
place of a float64 that holds the likeliest token's."""

LOWEST = np.float32(np.finfo(np.float32).min)
NOTHING = np.float32(-np.inf)
LOG2_E = 1.4426950408889634


class Scale(NamedTuple):
    """The weight of a logit x is 2**((x - top) * (rate + rate_rest)), and 0 unless x - top > least. All float32."""

    top: Any
    rate: Any
    rate_rest: Any
    least: Any


class Row(NamedTuple):
    """Where the logits of one row are. Integers, but for ``patched``; addresses are in bytes."""

    kind: int
    address: int
    num_tokens: int
    mask: int
    """Address of its bitmask, or 0."""
    tail: int
    """Address of a float32 [BLOCK]: the tokens of a last block that is not full, its mask applied, then -inf."""
    patched: Any
    """uint8 [NB]: whether the block is to be read from ``patches``."""
    patches: int
    """Address of a float32 [NB * BLOCK]."""


@inlined
def scale_of(top: Any, temperature: float) -> Any:
    rate = LOG2_E / temperature
    high = np.float32(rate)
    return Scale(top, high, np.float32(rate - np.float64(high)), np.float32(MIN_EXPONENT / rate))


@inlined
def place_of(row: Any, block: int) -> Any:
    """Kind, address and address of the mask (0: all allowed) of a block."""
    if row.patched[block]:
        return FP32, row.patches + 4 * BLOCK * block, 0
    if (block + 1) * BLOCK > row.num_tokens:
        return FP32, row.tail, 0
    size = 4 if row.kind == FP32 else 2
    return row.kind, row.address + size * BLOCK * block, row.mask + BLOCK // 8 * block if row.mask else 0


@inlined
def _max_of(kind: int, address: int, mask: int) -> Any:
    if mask:
        if word(64, mask) == 0 and word(64, mask + 8) == 0:
            return NOTHING
        if kind == BF16:
            return block_max(BF16, 1, address, mask)
        if kind == FP16:
            return block_max(FP16, 1, address, mask)
        return block_max(FP32, 1, address, mask)
    if kind == BF16:
        return block_max(BF16, 0, address, 0)
    if kind == FP16:
        return block_max(FP16, 0, address, 0)
    return block_max(FP32, 0, address, 0)


@inlined
def _sum_of(kind: int, address: int, mask: int, scale: Any) -> Any:
    if mask:
        if kind == BF16:
            return block_sum(BF16, 1, address, mask, scale)
        if kind == FP16:
            return block_sum(FP16, 1, address, mask, scale)
        return block_sum(FP32, 1, address, mask, scale)
    if kind == BF16:
        return block_sum(BF16, 0, address, 0, scale)
    if kind == FP16:
        return block_sum(FP16, 0, address, 0, scale)
    return block_sum(FP32, 0, address, 0, scale)


@inlined
def _pack_of(kind: int, address: int, mask: int, bound: Any, target: Any) -> int:
    if mask:
        if kind == BF16:
            return pack_block(BF16, 1, address, mask, bound, target)
        if kind == FP16:
            return pack_block(FP16, 1, address, mask, bound, target)
        return pack_block(FP32, 1, address, mask, bound, target)
    if kind == BF16:
        return pack_block(BF16, 0, address, 0, bound, target)
    if kind == FP16:
        return pack_block(FP16, 0, address, 0, bound, target)
    return pack_block(FP32, 0, address, 0, bound, target)


@inlined
def _reaching_of(kind: int, address: int, mask: int, half: int, bound: Any) -> Any:
    """Which of the 64 allowed tokens of a half of the block are at least ``bound``, as bits."""
    if kind == BF16:
        bits = reaching(BF16, address + half * BLOCK, bound)
    elif kind == FP16:
        bits = reaching(FP16, address + half * BLOCK, bound)
    else:
        bits = reaching(FP32, address + half * BLOCK * 2, bound)
    return bits & word(64, mask + 8 * half) if mask else bits


@inlined
def logit_of(kind: int, address: int, index: int) -> Any:
    if kind == BF16:
        return logit(BF16, address + 2 * index)
    if kind == FP16:
        return logit(FP16, address + 2 * index)
    return logit(FP32, address + 4 * index)


@inlined
def find_maxima(row: Any, maxima: Any) -> Any:
    """Fills ``maxima`` float32 [NB]; the largest of them, and whether an allowed token is NaN."""
    top = NOTHING
    has_nan = False
    for block in range(len(maxima)):
        kind, address, mask = place_of(row, block)
        most = _max_of(kind, address, mask)
        if not most >= NOTHING:
            has_nan = True
            most = _max_without_nan(kind, address, mask)
        maxima[block] = most
        if most > top:
            top = most
    return top, has_nan


@inlined
def _max_without_nan(kind: int, address: int, mask: int) -> Any:
    most = NOTHING
    for half in range(2):
        bits = _reaching_of(kind, address, mask, half, NOTHING)
        while bits:
            most = max(most, logit_of(kind, address, 64 * half + lowest_bit(bits)))
            bits &= bits - np.uint64(1)
    return most


@inlined
def find_sums(row: Any, maxima: Any, scale: Any, sums: Any) -> Any:
    """Fills ``sums`` float32 [NB] with the mass of each block; all of it, added block by block in float64, and the
    number of allowed tokens above -inf."""
    total = 0.0
    count = 0
    for block in range(len(maxima)):
        mass, is_whole = np.float32(0.0), False
        kind, address, mask = place_of(row, block)
        if maxima[block] - scale.top > scale.least:
            mass, is_whole = _sum_of(kind, address, mask, scale)
        sums[block] = mass
        total += np.float64(mass)
        if is_whole:
            count += num_bits(word(64, mask)) + num_bits(word(64, mask + 8)) if mask else BLOCK
        elif maxima[block] > NOTHING:
            count += _count_of(kind, address, mask, LOWEST)
    return total, count


@inlined
def _count_of(kind: int, address: int, mask: int, bound: Any) -> int:
    return num_bits(_reaching_of(kind, address, mask, 0, bound)) + num_bits(_reaching_of(kind, address, mask, 1, bound))


@inlined
def count_reaching(row: Any, maxima: Any, bound: Any) -> int:
    """How many allowed tokens are at least ``bound``, which is above -inf."""
    count = 0
    for block in range(len(maxima)):
        if maxima[block] >= bound:
            kind, address, mask = place_of(row, block)
            count += _count_of(kind, address, mask, bound)
    return count


@inlined
def first_reaching(row: Any, maxima: Any, bound: Any) -> int:
    """The lowest id of those that are at least ``bound``; there is one."""
    for block in range(len(maxima)):
        if maxima[block] >= bound:
            kind, address, mask = place_of(row, block)
            for half in range(2):
                bits = _reaching_of(kind, address, mask, half, bound)
                if bits:
                    return block * BLOCK + 64 * half + lowest_bit(bits)
    return -1


@inlined
def gather_reaching(row: Any, maxima: Any, bound: Any, tokens: Any) -> int:
    """Writes id and logit of each allowed token that is at least ``bound``, which is above -inf, ids ascending; how
    many they are. ``tokens`` is a `Tokens`."""
    ids, logits = tokens.ids.ctypes.data, tokens.logits.ctypes.data
    count = 0
    for block in range(len(maxima)):
        if maxima[block] >= bound:
            kind, address, mask = place_of(row, block)
            target = np.int64(block * BLOCK), np.int64(ids + 4 * count), np.int64(logits + 4 * count)
            count += _pack_of(kind, address, mask, bound, target)
    tokens.logits[count : round_up(count)] = NOTHING
    return count


@inlined
def round_up(count: int) -> int:
    return (count + BLOCK - 1) // BLOCK * BLOCK


@inlined
def weigh_all(logits: Any, count: int, scale: Any, weights: Any) -> None:
    """The weights of the first ``count`` logits, and of what is there up to a multiple of 128."""
    for first in range(0, round_up(count), 16):
        weigh(logits.ctypes.data + 4 * first, weights.ctypes.data + 4 * first, scale)


@inlined
def copy_tail(row: Any, tail: Any) -> None:
    """Fills the float32 [BLOCK] that `Row.tail` names, its mask applied."""
    first = row.num_tokens // BLOCK * BLOCK
    for index in range(BLOCK):
        inside = first + index < row.num_tokens and is_set(row.mask, first + index)
        tail[index] = logit_of(row.kind, row.address, first + index) if inside else NOTHING


@inlined
def is_set(mask: int, index: int) -> bool:
    """Whether the bitmask at an address (0: none) allows a token."""
    if not mask:
        return True
    return bool((word(32, mask + index // 32 * 4) >> np.uint64(index % 32)) & np.uint64(1))


@inlined
def patch(row: Any, block: int) -> None:
    """Copies a block to where it can be edited, its mask applied; once."""
    if row.patched[block]:
        return
    target = row.patches + 4 * BLOCK * block
    kind, address, mask = place_of(row, block)
    if mask:
        if kind == BF16:
            copy_block(BF16, 1, address, mask, target)
        elif kind == FP16:
            copy_block(FP16, 1, address, mask, target)
        else:
            copy_block(FP32, 1, address, mask, target)
    elif kind == BF16:
        copy_block(BF16, 0, address, 0, target)
    elif kind == FP16:
        copy_block(FP16, 0, address, 0, target)
    else:
        copy_block(FP32, 0, address, 0, target)
    row.patched[block] = 1
