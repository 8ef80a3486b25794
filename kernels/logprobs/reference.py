"""What `logprobs` must answer, in float64 by a full sort. Slow."""

import numpy as np
import torch

from kernels.sample.types import Logprobs


def logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_logprobs: int) -> Logprobs:
    """Of the raw logits [N, V], for the tokens int32 [N] and the ``num_logprobs`` likeliest.

    NaN counts as -inf; entries of +inf share the mass; in a row of nothing but -inf every logprob is -inf. With fewer
    than ``num_logprobs`` tokens in the vocabulary the tail has id -1 and -inf.
    """
    x = logits.to(torch.float64).numpy(force=True)
    x = np.where(np.isnan(x), -np.inf, x)
    num_rows, num_tokens = x.shape
    ids = np.full((num_rows, 1 + num_logprobs), -1, np.int64)
    values = np.full((num_rows, 1 + num_logprobs), -np.inf)
    ranks = np.zeros(num_rows, np.int64)
    for n, row in enumerate(x):
        top = row.max(initial=-np.inf)
        if np.isinf(top):
            log_p = np.where(row == np.inf, -np.log(max((row == np.inf).sum(), 1)), -np.inf)
        else:
            log_p = row - top - np.log(np.exp(row - top).sum())
        token = int(tokens[n])
        best = np.argsort(-row, kind="stable")[:num_logprobs]
        ids[n, : 1 + len(best)] = token, *best
        values[n, : 1 + len(best)] = log_p[token], *log_p[best]
        ranks[n] = (row >= row[token]).sum()
    assert num_tokens > 0
    return Logprobs(
        ids=torch.from_numpy(ids).to(torch.int32),
        logprobs=torch.from_numpy(values).to(torch.float32),
        rank=torch.from_numpy(ranks).to(torch.int32),
    )
