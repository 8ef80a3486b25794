"""Which tokens a filter keeps, found without sorting.

Every filter of the sampler keeps a prefix of the canonical order (logit descending, id ascending). Such a prefix is a
`Cut`: a logit, and how many of the tokens with just that logit belong to it, lowest ids first. Top-k is the shortest
prefix with k tokens and top-p the shortest with enough mass, so one search serves both: a bisection on the bits of the
logit, in which each probe adds up the weights of the tokens that reach it, and every few probes only the tokens still
in question are carried on.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.compiled import inlined
from kernels.lanes import BLOCK, pack, sum_reaching
from kernels.sample.blocks import LOWEST, NOTHING, round_up


class Tokens(NamedTuple):
    """Tokens of one row, ids ascending. The arrays have room for all of V and 128 more, and a multiple of 128 is used:
    behind the last token the logits are -inf and the weights 0."""

    ids: Any
    """int32."""
    logits: Any
    weights: Any
    """float32, each."""


class Cut(NamedTuple):
    """Kept: all tokens with a larger logit, and ``quota`` of the ``num_equal`` that have this one."""

    logit: Any
    quota: int
    num_equal: int


@inlined
def key_of(logit: Any) -> Any:
    """An integer in the order of the float32; one for both zeros."""
    bits = np.int64(np.float32(logit).view(np.int32))
    return bits if bits >= 0 else (bits ^ 0x7FFFFFFF) + (bits == -(2**31))


@inlined
def logit_of_key(key: Any) -> Any:
    return np.int32(key if key >= 0 else key ^ 0x7FFFFFFF).view(np.float32)


@inlined
def mass_reaching(logits: Any, weights: Any, count: int, bound: Any) -> float:
    """The weights of those of the first ``count`` tokens whose logit is at least ``bound``."""
    mass = 0.0
    for first in range(0, count, BLOCK):
        mass += np.float64(sum_reaching(logits.ctypes.data + 4 * first, weights.ctypes.data + 4 * first, bound))
    return mass


@inlined
def shortest_prefix(tokens: Any, spare: Any, count: int, lowest: Any, target: float) -> Any:
    """The `Cut` after which the weights of the first ``count`` tokens add up to ``target`` or more; all of them if
    rounding leaves their sum below it. No logit is under ``lowest``. Uses the ``spare`` tokens' room."""
    if mass_reaching(tokens.logits, tokens.weights, count, LOWEST) < target:
        return Cut(LOWEST, 0, 0)
    low, high = key_of(lowest), key_of(np.float32(np.inf))
    logits, weights = tokens.logits, tokens.weights
    mass_above = 0.0
    while low < high:
        mass_beyond = mass_above
        for _ in range(4):
            if low < high:
                middle = (low + high + 1) >> 1
                mass = mass_above + mass_reaching(logits, weights, count, logit_of_key(middle))
                if mass >= target:
                    low = middle
                else:
                    high, mass_beyond = middle - 1, mass
        count = _carry_on(logits, weights, count, logit_of_key(low), logit_of_key(high), spare)
        logits, weights, mass_above = spare.logits, spare.weights, mass_beyond
    if count == 0 or not weights[0] > 0.0:
        return Cut(logit_of_key(low), 0, 0)
    missing = np.ceil((target - mass_above) / np.float64(weights[0]))
    return Cut(logit_of_key(low), int(min(max(missing, 1.0), np.float64(count))), count)


@inlined
def _carry_on(logits: Any, weights: Any, count: int, lower: Any, upper: Any, spare: Any) -> int:
    """Copies to ``spare`` (which may be where they are) logits and weights from ``lower`` to ``upper``; how many."""
    into = spare.logits.ctypes.data, spare.weights.ctypes.data
    carried = 0
    for first in range(0, count, 16):
        source = logits.ctypes.data + 4 * first, weights.ctypes.data + 4 * first
        carried += pack(source, (into[0] + 4 * carried, into[1] + 4 * carried), lower, upper)
    spare.logits[carried : round_up(carried)] = NOTHING
    spare.weights[carried : round_up(carried)] = 0.0
    return carried


@inlined
def keep(cut: Any, tokens: Any, count: int) -> int:
    """Leaves the tokens that the cut keeps; how many they are."""
    if cut.quota < cut.num_equal:
        left = cut.quota
        for i in range(count):
            if tokens.logits[i] == cut.logit:
                if left == 0:
                    tokens.logits[i] = NOTHING
                left -= left > 0
    addresses = tokens.logits.ctypes.data, tokens.ids.ctypes.data, tokens.weights.ctypes.data
    kept = 0
    for first in range(0, count, 16):
        source = addresses[0] + 4 * first, addresses[1] + 4 * first, addresses[2] + 4 * first
        target = addresses[0] + 4 * kept, addresses[1] + 4 * kept, addresses[2] + 4 * kept
        kept += pack(source, target, cut.logit, np.float32(np.inf))
    tokens.logits[kept : round_up(kept)] = NOTHING
    tokens.weights[kept : round_up(kept)] = 0.0
    return kept


@inlined
def bound_of_top_k(maxima: Any, k: int, keys: Any) -> Any:
    """A logit that at least k tokens reach: about the k-th largest block maximum. k is at most the number of blocks.

    ``keys`` is room for int32 [NB]. Bisects the keys, and stops when little more than k blocks are left.
    """
    low = high = key_of(maxima[0])
    for block in range(len(maxima)):
        key = key_of(maxima[block])
        keys[block] = key
        low, high = min(low, key), max(high, key)
    slack = k + k // 8
    while low < high:
        middle = (low + high + 1) >> 1
        count = _num_at_least(keys, np.int32(middle))
        if count < k:
            high = middle - 1
        else:
            low = middle
            if count <= slack:
                break
    return max(logit_of_key(low), LOWEST)


@inlined
def _num_at_least(keys: Any, bound: Any) -> Any:
    count = np.int32(0)
    for key in keys:
        count += np.int32(key >= bound)
    return count


@inlined
def bound_of_top_p(peaks: Any, sums: Any, target: float, scale: Any) -> Any:
    """A logit such that the tokens reaching it have a mass of ``target`` or more, if rounding does not prevent it.

    ``peaks`` and ``sums``, float32 [NB], are the weight of each block's likeliest token and the mass of the block. The
    tokens that reach weight w have at least the mass ``sum over blocks with peak >= w of max(peak, sum - 127 w)``.
    Bisects the exponent of w; a target just missed costs a second reading, never the answer.
    """
    low, high = -80.0, 0.0  # the mass suffices at w = 2**low, and not at 2**high
    for _ in range(9):
        middle = 0.5 * (low + high)
        if _mass_certain(peaks, sums, np.float32(2.0**middle)) >= target:
            low = middle
        else:
            high = middle
    rate = np.float64(scale.rate) + np.float64(scale.rate_rest)
    return max(np.float32(np.float64(scale.top) + low * (1 + 1e-6) / rate), LOWEST)


@inlined
def _mass_certain(peaks: Any, sums: Any, weight: Any) -> float:
    rest = np.float32(BLOCK - 1) * weight
    mass = np.zeros(8, np.float32)
    for block in range(len(peaks)):
        if peaks[block] >= weight:
            mass[block % 8] += max(peaks[block], sums[block] - rest)
    return np.float64(mass.sum())
