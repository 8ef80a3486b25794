"""`sample` on the CPU, compiled by numba: the same tokens as `reference.sample` at the cost of one or two readings.

Weights are float32, exact to about 1.5e-7 of their value; masses are added in float64, in an order that the row alone
decides. So a token may differ from the reference's only if the random number is within 1e-6 of the bound between two
tokens, and the number of tokens that top-p keeps only if two masses are as near to p.
"""

import numpy as np
import torch

from kernels.compiled import over_rows
from kernels.logprobs.cpu import logprobs
from kernels.sample.matrix import array_of, matrix_of, room_for
from kernels.sample.rows import Changes, Outcome, Settings, sample_rows
from kernels.sample.types import Edits, Params, Sampled

_NO_CHANGES = Changes(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def sample(
    logits: torch.Tensor,
    params: Params,
    mask: torch.Tensor | None = None,
    edits: Edits | None = None,
    num_logprobs: int | None = None,
) -> Sampled:
    """One token for each row of logits [N, V] (bfloat16, float16 or float32, any row stride), which are not changed.

    ``mask`` is int32 [N, ceil(V / 32)], xgrammar's bitmask: the bit of an allowed token is set. ``num_logprobs`` asks
    for the logprobs of the token and of so many likeliest ones, of the raw logits.

    Raises:
        ValueError: a tensor is not of the type and shape that `types` and this function say, or an edit is of a token
            that is not in the vocabulary.
    """
    num_rows, num_tokens = logits.shape
    matrix = matrix_of(logits, mask)
    settings = Settings(
        temperature=array_of(params.temperature, torch.float32),
        top_k=array_of(params.top_k, torch.int32),
        top_p=array_of(params.top_p, torch.float32),
        min_p=array_of(params.min_p, torch.float32),
        seed=array_of(params.seed, torch.int64),
        position=array_of(params.position, torch.int64),
    )
    if any(len(setting) != num_rows for setting in settings):
        raise ValueError(f"{num_rows} rows of logits need as many of each parameter: {[len(x) for x in settings]}")
    changes = _NO_CHANGES if edits is None else _changes_of(edits, num_rows)
    token = torch.empty(num_rows, dtype=torch.int32)
    num_kept = torch.empty(num_rows, dtype=torch.int32)
    status = torch.empty(num_rows, dtype=torch.uint8)
    outcome = Outcome(token.numpy(), num_kept.numpy(), status.numpy())

    def work(first: int, last: int) -> None:
        if not sample_rows(first, last, matrix, settings, changes, room_for(num_tokens), outcome):
            raise ValueError(f"an edit is of a token that is not in the vocabulary of {num_tokens}")

    over_rows(num_rows, num_tokens, work)
    chosen = None if num_logprobs is None else logprobs(logits, token, num_logprobs)
    return Sampled(token=token, num_kept=num_kept, status=status, logprobs=chosen)


def _changes_of(edits: Edits, num_rows: int) -> Changes:
    offsets, ids = array_of(edits.offsets, torch.int32), array_of(edits.ids, torch.int32)
    logits = array_of(edits.logits, torch.float32)
    if len(offsets) != num_rows + 1 or not offsets[-1] == len(ids) == len(logits):
        raise ValueError(f"edits of {num_rows} rows: {len(offsets)} offsets, {len(ids)} ids, {len(logits)} logits")
    return Changes(offsets, ids, logits)
