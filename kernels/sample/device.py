"""What the sampler's kernels share on the device: keys, reads, weights, draws.

Two tuples go everywhere: ``at`` is where a row's logits are and what is put over them, as `row_at` makes it, and
``HOW`` is (has a mask, has edits, shift of the keys). A row is read in blocks of `BLOCK` tokens. A *key* is an integer
that orders as its logit does: the float's bits, with all but the sign flipped where negative (Herf, "Radix tricks",
2001). What widening bfloat16 or float16 to float32 left equal in every key is shifted out, so that a bisection over
keys has half the steps.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(128)
NEG_INF = tl.constexpr(float("-inf"))
KEY_OF_NEG_INF = tl.constexpr(-0x7F800001)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def lowest_key(SHIFT: tl.constexpr):
    """The key of -inf: no token below, none with it may be chosen."""
    return KEY_OF_NEG_INF >> SHIFT


@triton.jit
def key_of(x, SHIFT: tl.constexpr):
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0.0 is +0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def key_at_least(x, SHIFT: tl.constexpr):
    """The lowest key whose logit is not below x, which itself may lie between two logits."""
    key = key_of(x, 0)
    return tl.where(key >= 0, (key.to(tl.int64) + ((1 << SHIFT) - 1)) >> SHIFT, key >> SHIFT).to(tl.int32)


@triton.jit
def logit_of(key, SHIFT: tl.constexpr):
    key = tl.where(key >= 0, key << SHIFT, (key << SHIFT) | ((1 << SHIFT) - 1))
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(x, top, scale):
    """exp((x - top) / T) with scale = log2(e) / T; equal infinities weigh 1, and -inf nothing whatever the scale."""
    return tl.where(x == top, 1.0, tl.where(x == NEG_INF, 0.0, tl.exp2((x - top) * scale)))


@triton.jit
def _bits_below(word, bit):
    """How many bits of a 32-bit word are set below ``bit``."""
    v = word.to(tl.uint32, bitcast=True) & ((1 << bit.to(tl.uint32)) - 1).to(tl.uint32)
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return ((v * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def row_at(
    row, V, logits_ptr, logits_stride, mask_ptr, mask_stride, touched_ptr, rank_ptr, bitmap_stride, edits_ptr
):  # fmt: skip
    row = row.to(tl.int64)
    bitmap = row * bitmap_stride
    return (
        logits_ptr + row * logits_stride, V, mask_ptr + row * mask_stride,
        touched_ptr + bitmap, rank_ptr + bitmap, edits_ptr,
    )  # fmt: skip


@triton.jit
def with_edits(at, x, ids, valid):
    """Logits with those of `Edits` in their places. The row's bitmap says which tokens have one, and beside each word
    stands where the word's first is."""
    _, _, _, touched_ptr, rank_ptr, edits_ptr = at
    word = tl.load(touched_ptr + (ids >> 5), mask=valid, other=0)
    has_edit = valid & (((word >> (ids & 31)) & 1) != 0)
    first = tl.load(rank_ptr + (ids >> 5), mask=has_edit, other=0)
    edit = tl.load(edits_ptr + first + _bits_below(word, ids & 31), mask=has_edit, other=0.0)
    return tl.where(has_edit, edit, x)


@triton.jit
def read(at, ids, valid, HOW: tl.constexpr):
    """The logits of tokens [R, BLOCK], whole blocks, as float32, edited and masked; a NaN stays one, what is not valid
    is -inf."""
    row_ptr, _, mask_ptr, _, _, _ = at
    loaded = valid
    if HOW[0]:
        word = tl.load(mask_ptr + (ids >> 5), mask=valid, other=0)
        is_open = tl.max((word != 0).to(tl.int32), axis=1)  # a block with nothing to choose is not read
        loaded = valid & (is_open[:, None] != 0)
    x = tl.load(row_ptr + ids, mask=loaded, other=NEG_INF).to(tl.float32)
    if HOW[1]:
        x = with_edits(at, x, ids, loaded)
    if HOW[0]:
        x = tl.where(((word >> (ids & 31)) & 1) != 0, x, NEG_INF)
    return x


@triton.jit
def read_keys(at, ids, valid, HOW: tl.constexpr):
    """The keys of tokens; a NaN's is that of -inf."""
    x = read(at, ids, valid, HOW)
    return key_of(tl.where(x == x, x, NEG_INF), HOW[2])


@triton.jit
def uniform(seed, position):
    """[0, 1), a multiple of 2**-53, from Philox4x32-10 keyed by the seed and counting positions."""
    w0, w1, _, _ = tl.philox(
        seed.to(tl.uint64, bitcast=True),
        (position & 0xFFFFFFFF).to(tl.uint32),
        ((position >> 32) & 0xFFFFFFFF).to(tl.uint32),
        (position * 0).to(tl.uint32),
        (position * 0).to(tl.uint32),
    )
    high = (w0.to(tl.uint32, bitcast=True) >> 5).to(tl.float64)
    low = (w1.to(tl.uint32, bitcast=True) >> 6).to(tl.float64)
    return (high * 67108864.0 + low) * 1.1102230246251565e-16


@triton.jit
def first_over(mass, target, SIZE: tl.constexpr):
    """The first of ``mass`` [SIZE] float64 at which the running sum is over ``target``, and the sum before it.

    Where rounding leaves none, the last that has any.
    """
    places = tl.arange(0, SIZE)
    running = tl.cumsum(mass, axis=0)
    over = tl.min(tl.where((running > target) & (mass > 0), places, SIZE), axis=0)
    last = tl.max(tl.where(mass > 0, places, 0), axis=0)
    place = tl.minimum(over, last)
    before = tl.sum(tl.where(places == place, running - mass, 0.0), axis=0)
    return place, before


@triton.jit
def kth_largest(keys, k, low, high):
    """The largest key that at least k of ``keys`` reach, known to lie in [low, high]."""
    low, high = low.to(tl.int64), high.to(tl.int64)
    while low < high:
        middle = low + (high - low + 1) // 2
        enough = tl.sum((keys >= middle.to(tl.int32)).to(tl.int32), axis=0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low.to(tl.int32)


@triton.jit
def list_blocks(block_keys, low, list_ptr, SIZE: tl.constexpr):
    """Write the blocks whose maximum reaches ``low``, ascending; how many there are."""
    reaches = (block_keys >= low).to(tl.int32)
    place = tl.cumsum(reaches, axis=0) - 1
    tl.store(list_ptr + place, tl.arange(0, SIZE), mask=reaches != 0)
    tl.debug_barrier()  # other threads read it
    return tl.sum(reaches, axis=0)


@triton.jit
def listed_ids(list_ptr, start, num_blocks, V, ROWS: tl.constexpr):
    """The token ids [ROWS, BLOCK] of a stretch of the list, and which of them exist."""
    offs = start + tl.arange(0, ROWS)
    block = tl.load(list_ptr + offs, mask=offs < num_blocks, other=0)
    ids = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return ids, (offs < num_blocks)[:, None] & (ids < V)


@triton.jit
def places_of(chosen, ROWS: tl.constexpr):
    """The number of chosen ones before each of ``chosen`` [ROWS, BLOCK] int32 in ascending order of ids."""
    in_block = tl.cumsum(chosen, axis=1)
    of_block = tl.sum(chosen, axis=1)
    before = tl.cumsum(of_block, axis=0) - of_block
    return before[:, None] + in_block - chosen


@triton.jit
def gather(
    at, list_ptr, num_blocks, low, keys_ptr, ids_ptr, HOW: tl.constexpr, ROWS: tl.constexpr, CAPACITY: tl.constexpr
):  # fmt: skip
    """Write the listed blocks' tokens with keys of at least ``low``, ids ascending; how many were found. More than
    CAPACITY: not all were looked for."""
    num_found = 0
    start = 0
    while (start < num_blocks) & (num_found <= CAPACITY):
        ids, valid = listed_ids(list_ptr, start, num_blocks, at[1], ROWS)
        keys = read_keys(at, ids, valid, HOW)
        found = (valid & (keys >= low)).to(tl.int32)
        places = num_found + places_of(found, ROWS)
        fits = (found != 0) & (places < CAPACITY)
        tl.store(keys_ptr + places, keys, mask=fits)
        tl.store(ids_ptr + places, ids, mask=fits)
        num_found += tl.sum(tl.sum(found, axis=1), axis=0)
        start += ROWS
    tl.debug_barrier()  # other threads read them
    return num_found
