"""Logprobs from block statistics: the oracle's ids and ranks, and its logarithms to 1e-5."""

import pytest
import torch

from kernels.logprobs import reference
from kernels.logprobs.cpu import logprobs
from tests.kernels.rows import flat, peaked

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def check(logits: torch.Tensor, tokens: torch.Tensor, num_logprobs: int) -> None:
    answer, expected = logprobs(logits, tokens, num_logprobs), reference.logprobs(logits, tokens, num_logprobs)
    assert torch.equal(answer.ids, expected.ids)
    assert torch.equal(answer.rank, expected.rank)
    torch.testing.assert_close(answer.logprobs, expected.logprobs, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 127, 128, 129, 1003, 32003])
def test_ids_ranks_and_logarithms_are_the_oracles(num_tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    logits = torch.cat([rows(3, num_tokens, generator, dtype) for rows in (peaked, flat)])
    tokens = torch.randint(num_tokens, (6,), generator=generator, dtype=torch.int32)
    tokens[0] = num_tokens - 1
    for num_logprobs in (0, 1, 5, 20):
        check(logits, tokens, num_logprobs)


def test_rows_that_hold_no_ordinary_number_have_defined_logprobs() -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.zeros(6, 300)
    logits[0, 7] = nan
    logits[1] = -inf
    logits[2, [3, 200]] = inf
    logits[3] = nan
    logits[4] = -inf
    logits[4, 299] = 1.0
    logits[5, 8] = -0.0
    for token in (7, 3, 299):
        check(logits, torch.full((6,), token, dtype=torch.int32), 5)


def test_a_prompts_rows_need_no_copy_and_a_token_outside_the_vocabulary_is_refused() -> None:
    wide = torch.randn(9, 500)
    check(wide[::2, 100:400], torch.arange(5, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="vocabulary of 500"):
        logprobs(wide, torch.full((9,), 500, dtype=torch.int32), 1)
