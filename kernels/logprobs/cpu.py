"""Logprobs on the CPU: of sampled tokens, or of a prompt's."""

import torch

from kernels.compiled import over_rows
from kernels.logprobs.rows import Table, logprob_rows
from kernels.sample.matrix import matrix_of, room_for
from kernels.sample.types import Logprobs


def logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_logprobs: int) -> Logprobs:
    """Of raw logits [N, V] (bfloat16, float16 or float32, any row stride) for the tokens int32 [N] and the
    ``num_logprobs`` likeliest of each row. As `reference.logprobs`.

    For prompt logprobs the rows are the prompt's positions and the tokens those that follow them; nothing is copied,
    and no row of V logprobs is made.

    Raises:
        ValueError: a token is not in the vocabulary.
    """
    num_rows, num_tokens = logits.shape
    matrix = matrix_of(logits)
    tokens = tokens.to(torch.int32).contiguous()
    ids = torch.empty((num_rows, 1 + num_logprobs), dtype=torch.int32)
    values = torch.empty((num_rows, 1 + num_logprobs), dtype=torch.float32)
    rank = torch.empty(num_rows, dtype=torch.int32)
    table = Table(ids.numpy(), values.numpy(), rank.numpy())

    def work(first: int, last: int) -> None:
        if not logprob_rows(first, last, matrix, tokens.numpy(), room_for(num_tokens), table):
            raise ValueError(f"a token is not in the vocabulary of {num_tokens}: {tokens.tolist()}")

    over_rows(num_rows, num_tokens, work)
    return Logprobs(ids=ids, logprobs=values, rank=rank)
