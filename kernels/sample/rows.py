"""`sample` for one row after another: the compiled side of `kernels.sample.cpu`.

What a row costs is decided by its own settings. All rows: one reading for the block maxima, which is all that greedy
rows need. Top-k and min-p give a bound from the maxima, and only blocks that reach it are read again. Temperature alone
and top-p need the mass, a second reading; then temperature reads the one block that the draw fell into, and top-p the
blocks that reach its bound.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.compiled import entry, inlined
from kernels.lanes import BLOCK, sum_reaching
from kernels.sample.blocks import (
    LOWEST,
    NOTHING,
    Row,
    copy_tail,
    find_maxima,
    find_sums,
    first_reaching,
    gather_reaching,
    is_set,
    logit_of,
    patch,
    place_of,
    round_up,
    scale_of,
    weigh_all,
)
from kernels.sample.cut import bound_of_top_k, bound_of_top_p, keep, mass_reaching, shortest_prefix

GREEDY_BELOW = 1e-5
OK, NAN, NOTHING_ALLOWED = 0, 1, 2


class Matrix(NamedTuple):
    """The logits of a batch, and where the masks of its rows are."""

    kind: int
    address: int
    stride: int
    """Bytes from a row to the next."""
    num_tokens: int
    mask: int
    """Address of the first row's bitmask, or 0."""
    mask_stride: int


class Settings(NamedTuple):
    """The arrays of `types.Params`."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    seed: Any
    position: Any


class Changes(NamedTuple):
    """The arrays of `types.Edits`, or empty ones."""

    offsets: Any
    ids: Any
    logits: Any


class Outcome(NamedTuple):
    """The arrays of `types.Sampled`."""

    token: Any
    num_kept: Any
    status: Any


class Room(NamedTuple):
    """What one thread needs beside its input: about 28 bytes per token of the vocabulary."""

    maxima: Any
    sums: Any
    peaks: Any
    """float32 [NB], each."""
    keys: Any
    """int32 [NB]."""
    patched: Any
    """uint8 [NB], zero between rows."""
    patches: Any
    """float32 [NB * BLOCK]."""
    tail: Any
    """float32 [BLOCK]."""
    tokens: Any
    spare: Any
    """`Tokens`, each."""


@entry
def sample_rows(first: int, last: int, matrix: Any, settings: Any, changes: Any, room: Any, outcome: Any) -> bool:
    """Samples rows ``first`` to ``last - 1``; whether all ids of their edits are in the vocabulary."""
    fine = True
    for n in range(first, last):
        row = row_of(matrix, n, room)
        begin, end = (changes.offsets[n], changes.offsets[n + 1]) if len(changes.offsets) else (0, 0)
        fine &= _edit(row, changes, begin, end, room.patches)
        token, num_kept, status = _sample(row, settings, n, room)
        outcome.token[n], outcome.num_kept[n], outcome.status[n] = token, num_kept, status
        room.patched[:] = 0
    return fine


@inlined
def row_of(matrix: Any, n: int, room: Any) -> Any:
    mask = matrix.mask + n * matrix.mask_stride if matrix.mask else 0
    address = matrix.address + n * matrix.stride
    row = Row(
        matrix.kind, address, matrix.num_tokens, mask, room.tail.ctypes.data, room.patched, room.patches.ctypes.data
    )
    if matrix.num_tokens % BLOCK:
        copy_tail(row, room.tail)
    return row


@inlined
def _edit(row: Any, changes: Any, begin: int, end: int, patches: Any) -> bool:
    fine = True
    for i in range(begin, end):
        token = changes.ids[i]
        if 0 <= token < row.num_tokens:
            patch(row, token // BLOCK)
            patches[token] = changes.logits[i] if is_set(row.mask, token) else NOTHING
        else:
            fine = False
    return fine


@inlined
def _sample(row: Any, settings: Any, n: int, room: Any) -> Any:
    top, has_nan = find_maxima(row, room.maxima)
    status = NAN if has_nan else OK
    if top == NOTHING:
        return 0, 0, NOTHING_ALLOWED
    temperature = np.float64(settings.temperature[n])
    if temperature < GREEDY_BELOW:
        return first_reaching(row, room.maxima, top), 1, status
    u = uniform(settings.seed[n], settings.position[n])
    top_k, top_p, min_p = settings.top_k[n], np.float64(settings.top_p[n]), np.float64(settings.min_p[n])
    has_top_k = 0 < top_k < row.num_tokens
    scale = scale_of(top, temperature)
    if top == np.inf or has_top_k or min_p > 0.0:
        bound, count = _gather_bounded(row, scale, temperature, top_k if has_top_k else 0, min_p, room)
        mass = mass_reaching(room.tokens.logits, room.tokens.weights, count, LOWEST)
    else:
        mass, count = find_sums(row, room.maxima, scale, room.sums)
        if not top_p < 1.0:
            return _draw_of_all(row, scale, u * mass, room), count, status
        bound, count = _gather_mass(row, scale, top_p * mass, room)
    if top_p < 1.0:
        cut = shortest_prefix(room.tokens, room.spare, count, bound, top_p * mass)
        count = keep(cut, room.tokens, count)
        mass = mass_reaching(room.tokens.logits, room.tokens.weights, count, LOWEST)
    return _draw(room.tokens, count, u * mass), count, status


@inlined
def _gather_bounded(row: Any, scale: Any, temperature: float, top_k: int, min_p: float, room: Any) -> Any:
    """The tokens that min-p, then top-k (0: off) leave, with their weights: a bound that all reach, and how many."""
    bound = LOWEST
    if 0 < top_k <= len(room.maxima):
        bound = bound_of_top_k(room.maxima, top_k, room.keys)
    if scale.top == np.inf:
        bound = scale.top
    elif min_p > 0.0:
        bound = max(bound, _at_least(np.float64(scale.top) + temperature * np.log(min_p)))
    tokens = room.tokens
    count = gather_reaching(row, room.maxima, bound, tokens)
    if 0 < top_k < count:
        tokens.weights[:count] = 1.0
        tokens.weights[count : round_up(count)] = 0.0
        cut = shortest_prefix(tokens, room.spare, count, bound, np.float64(top_k))
        count = keep(cut, tokens, count)
    if scale.top == np.inf:
        tokens.weights[:count] = 1.0
        tokens.weights[count : round_up(count)] = 0.0
    else:
        weigh_all(tokens.logits, count, scale, tokens.weights)
    return bound, count


@inlined
def _gather_mass(row: Any, scale: Any, target: float, room: Any) -> Any:
    """Tokens that hold all that top-p keeps, with their weights: a bound that all reach, and how many."""
    weigh_all(room.maxima, len(room.maxima), scale, room.peaks)
    bound = bound_of_top_p(room.peaks, room.sums, target, scale)
    tokens = room.tokens
    count = gather_reaching(row, room.maxima, bound, tokens)
    weigh_all(tokens.logits, count, scale, tokens.weights)
    if mass_reaching(tokens.logits, tokens.weights, count, LOWEST) < target:
        bound = LOWEST
        count = gather_reaching(row, room.maxima, bound, tokens)
        weigh_all(tokens.logits, count, scale, tokens.weights)
    return bound, count


@inlined
def _at_least(bound: float) -> Any:
    """The smallest float32 that is not below a float64."""
    nearest = np.float32(bound)
    return np.nextafter(nearest, np.float32(np.inf)) if np.float64(nearest) < bound else nearest


@inlined
def uniform(seed: int, position: int) -> float:
    """As `reference.uniform`: two words of Philox4x32-10."""
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = np.uint64(seed) & low, np.uint64(seed) >> np.uint64(32)
    c0, c1 = np.uint64(position) & low, np.uint64(position) >> np.uint64(32)
    c2 = c3 = np.uint64(0)
    for _ in range(10):
        even, odd = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c2 = (odd >> np.uint64(32)) ^ c1 ^ k0, (even >> np.uint64(32)) ^ c3 ^ k1
        c1, c3 = odd & low, even & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return (np.float64(c0 >> np.uint64(5)) * 2.0**26 + np.float64(c1 >> np.uint64(6))) * 2.0**-53


@inlined
def _draw(tokens: Any, count: int, target: float) -> int:
    """The first token whose cumulative weight exceeds ``target``."""
    mass = 0.0
    chosen = 0
    for first in range(0, count, BLOCK):
        chosen = first
        addresses = tokens.logits.ctypes.data + 4 * first, tokens.weights.ctypes.data + 4 * first
        beyond = mass + np.float64(sum_reaching(addresses[0], addresses[1], LOWEST))
        if beyond > target:
            break
        mass = beyond
    return tokens.ids[chosen + _draw_of_block(tokens.weights[chosen:], min(BLOCK, count - chosen), mass, target)]


@inlined
def _draw_of_all(row: Any, scale: Any, target: float, room: Any) -> int:
    """As `_draw`, of all tokens, of which only one block is read."""
    mass = 0.0
    chosen = 0
    for block in range(len(room.sums)):
        if room.sums[block] > 0.0:
            chosen = block
            beyond = mass + np.float64(room.sums[block])
            if beyond > target:
                break
            mass = beyond
    kind, address, mask = place_of(row, chosen)
    tokens = room.tokens
    for index in range(BLOCK):
        tokens.logits[index] = logit_of(kind, address, index) if is_set(mask, index) else NOTHING
    weigh_all(tokens.logits, BLOCK, scale, tokens.weights)
    return chosen * BLOCK + _draw_of_block(tokens.weights, BLOCK, mass, target)


@inlined
def _draw_of_block(weights: Any, count: int, mass: float, target: float) -> int:
    """The index of the first of ``count`` weights that takes the mass above ``target``; of the last that is not 0 if
    rounding, in another order than the block's sum was made, leaves the mass below."""
    chosen = 0
    for index in range(count):
        if weights[index] > 0.0:
            chosen = index
            mass += np.float64(weights[index])
            if mass > target:
                break
    return chosen
