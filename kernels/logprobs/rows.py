"""Logprobs for one row after another: the compiled side of `kernels.logprobs.cpu`.

One reading gives the block maxima, a second the mass. The likeliest tokens lie in the blocks that reach about the n-th
largest maximum, and the rank of a token needs only the blocks whose maximum is not below it.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.compiled import entry, inlined
from kernels.lanes import BLOCK, FP32
from kernels.sample.blocks import (
    LOWEST,
    NOTHING,
    count_reaching,
    find_maxima,
    find_sums,
    gather_reaching,
    logit_of,
    scale_of,
)
from kernels.sample.cut import bound_of_top_k
from kernels.sample.rows import row_of


class Table(NamedTuple):
    """The arrays of `types.Logprobs`."""

    ids: Any
    logprobs: Any
    rank: Any


@entry
def logprob_rows(first: int, last: int, matrix: Any, tokens: Any, room: Any, table: Any) -> bool:
    """Fills rows ``first`` to ``last - 1`` of a `Table`; whether all tokens are in the vocabulary."""
    fine = True
    ids, logprobs, rank = table
    for n in range(first, last):
        row = row_of(matrix, n, room)
        top, _ = find_maxima(row, room.maxima)
        log_mass = _log_mass(row, top, room)
        if not 0 <= tokens[n] < row.num_tokens:
            fine = False
            continue
        own = _logit_at(row, tokens[n])
        ids[n, 0] = tokens[n]
        logprobs[n, 0] = _logprob(own, top, log_mass)
        rank[n] = count_reaching(row, room.maxima, own) if own > NOTHING else row.num_tokens
        _find_likeliest(row, room, ids[n, 1:], room.tokens.weights)
        for i in range(1, ids.shape[1]):
            logprobs[n, i] = _logprob(room.tokens.weights[i - 1], top, log_mass)
    return fine


@inlined
def _log_mass(row: Any, top: Any, room: Any) -> float:
    """The logarithm of the sum of exp(x - top); if ``top`` is +inf, of the number of tokens that have it."""
    if top == NOTHING:
        return 0.0
    if top == np.inf:
        return np.log(np.float64(count_reaching(row, room.maxima, top)))
    return np.log(find_sums(row, room.maxima, scale_of(top, 1.0), room.sums)[0])


@inlined
def _logprob(logit: Any, top: Any, log_mass: float) -> Any:
    if top == np.inf and logit == top:
        return np.float32(-log_mass)
    if not logit > NOTHING or top == np.inf:
        return NOTHING
    return np.float32(np.float64(logit) - np.float64(top) - log_mass)


@inlined
def _logit_at(row: Any, token: int) -> Any:
    """NaN counts as -inf."""
    if token >= row.num_tokens // BLOCK * BLOCK:
        found = logit_of(FP32, row.tail, token % BLOCK)
    else:
        found = logit_of(row.kind, row.address, token)
    return found if found > NOTHING else NOTHING


@inlined
def _find_likeliest(row: Any, room: Any, ids: Any, logits: Any) -> None:
    """Fills ``ids`` [K], and ``logits`` from its start, with the first K tokens in canonical order."""
    wanted = len(ids)
    if wanted == 0:
        return
    bound = LOWEST
    if wanted <= len(room.maxima):
        bound = bound_of_top_k(room.maxima, wanted, room.keys)
    count = gather_reaching(row, room.maxima, bound, room.tokens)
    held = 0
    for i in range(count):
        held = _insert(room.tokens.ids[i], room.tokens.logits[i], ids, logits, held)
    token = 0
    while held < wanted and token < row.num_tokens:
        if _logit_at(row, token) == NOTHING:
            ids[held], logits[held] = token, NOTHING
            held += 1
        token += 1
    for i in range(held, wanted):
        ids[i], logits[i] = -1, NOTHING


@inlined
def _insert(token: int, logit: Any, ids: Any, logits: Any, held: int) -> int:
    """Into the ``held`` best so far, behind its equals; how many are held then."""
    if held == len(ids):
        if not logit > logits[held - 1]:
            return held
        held -= 1
    at = held
    while at > 0 and logit > logits[at - 1]:
        ids[at], logits[at] = ids[at - 1], logits[at - 1]
        at -= 1
    ids[at], logits[at] = token, logit
    return held + 1
