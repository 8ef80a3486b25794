"""Logprobs by the Triton kernels are those of the float64 reference, prompt's and hostile rows' too."""

import pytest
import torch

from kernels.logprobs import reference
from kernels.logprobs.op import logprobs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("num_tokens", "num_logprobs"), [(5, 7), (129, 0), (1003, 1), (3001, 20)])
def test_equal_to_the_reference(num_tokens: int, num_logprobs: int, dtype: torch.dtype, device: str) -> None:
    """Ids and ranks exactly. Equal rows have more candidates than fit, a +inf shares the mass, a NaN is -inf."""
    generator = torch.Generator().manual_seed(num_tokens)
    logits = torch.randn(6, num_tokens, generator=generator) * 3
    logits[1] = 0.5
    logits[2, [2, 4]] = float("inf")
    logits[3] = float("-inf")
    logits[4, ::2] = float("nan")
    logits = logits.to(dtype)
    tokens = torch.randint(0, num_tokens, (6,), generator=generator).to(torch.int32)
    tokens[2], tokens[0] = 4, logits[0].argmax()
    got = logprobs(logits.to(device), tokens.to(device), num_logprobs)
    wanted = reference.logprobs(logits, tokens, num_logprobs)
    assert torch.equal(got.ids.cpu(), wanted.ids)
    assert torch.equal(got.rank.cpu(), wanted.rank)
    torch.testing.assert_close(got.logprobs.cpu(), wanted.logprobs, atol=3e-6, rtol=1e-6)


def test_tokens_of_another_type_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"tokens: torch.int64 \(1,\)"):
        logprobs(torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.int64, device=device), 1)
