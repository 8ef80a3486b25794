"""The structured-output bitmask, applied in place."""

import pytest
import torch

from kernels.grammar_mask.cpu import allow_only, apply
from kernels.grammar_mask.reference import masked
from kernels.sample.reference import unpacked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 33, 128, 1003, 4096])
def test_what_is_not_allowed_becomes_minus_infinity_and_nothing_else_changes(
    num_tokens: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    wide = torch.randn(6, num_tokens + 5, generator=generator).to(dtype)
    logits = wide[:, 3 : num_tokens + 3]
    mask = torch.randint(-(2**31), 2**31, (6, -(-num_tokens // 32)), generator=generator).to(torch.int32)
    mask[1], mask[2] = 0, -1
    expected = wide.clone()
    expected[:, 3 : num_tokens + 3] = masked(logits, mask)
    apply(logits, mask)
    assert torch.equal(wide, expected)


def test_a_list_of_ids_becomes_a_bitmask() -> None:
    mask = allow_only([0, 31, 32, 99, 100, -1], 100)
    assert unpacked(mask[None], 100)[0].nonzero()[0].tolist() == [0, 31, 32, 99]
