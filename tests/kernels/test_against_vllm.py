"""Where vLLM's answer is defined, ours is the same."""

import numpy as np
import pytest
import torch

from kernels.penalties.cpu import Penalties
from kernels.penalties.rules import Rules
from kernels.sample.cpu import sample
from tests.kernels.rows import params, peaked

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # imported by vLLM, or by what it compiles with
]

NUM_TOKENS = 5003


@pytest.fixture(scope="module")
def stock() -> object:
    from benchmarks.kernels import stock

    return stock


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_greedy_tokens_after_penalties_are_vllms(stock: object, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    logits = peaked(48, NUM_TOKENS, generator, dtype)
    rules = [Rules(1.0 + 0.1 * (n % 4), 0.3 * (n % 3), 0.2 * (n % 5)) for n in range(48)]
    likely = logits.float().topk(30).indices
    prompts, outputs = likely[:, ::3].tolist(), torch.cat([likely[:, 1::2], likely[:, :5]], 1).tolist()
    penalties = Penalties(48, NUM_TOKENS)
    for slot in range(48):
        penalties.add_request(slot, rules[slot], prompts[slot], outputs[slot])
    chosen = params(48, temperature=0.0)
    ours = sample(logits, chosen, edits=penalties.edits(logits, np.arange(48)))
    metadata = stock.metadata_of(chosen, NUM_TOKENS, rules=rules, prompts=prompts, outputs=outputs)  # type: ignore[attr-defined]
    theirs = stock.sample(logits.clone(), metadata)  # type: ignore[attr-defined]
    assert ours.token.tolist() == theirs.sampled_token_ids[:, 0].tolist()
    assert (ours.token != likely[:, 0]).sum() > 20, "the penalties decided nothing"


def test_logprobs_and_ranks_are_vllms(stock: object) -> None:
    logits = peaked(32, NUM_TOKENS, torch.Generator().manual_seed(9), torch.float32)
    chosen = params(32, temperature=0.0)
    ours = sample(logits, chosen, num_logprobs=5).logprobs
    theirs = stock.sample(logits.clone(), stock.metadata_of(chosen, NUM_TOKENS, num_logprobs=5)).logprobs_tensors  # type: ignore[attr-defined]
    assert ours is not None
    assert torch.equal(ours.ids, theirs.logprob_token_ids)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=1e-4, rtol=0)
    assert ours.rank.tolist() == theirs.selected_token_ranks.tolist()


def test_a_grammars_tokens_are_vllms(stock: object) -> None:
    generator = torch.Generator().manual_seed(10)
    logits = peaked(16, NUM_TOKENS, generator, torch.bfloat16)
    mask = torch.randint(-(2**31), 2**31, (16, -(-NUM_TOKENS // 32)), generator=generator).to(torch.int32)
    chosen = params(16, temperature=0.0)
    ours = sample(logits, chosen, mask).token
    stock.apply_grammar(logits, mask)  # type: ignore[attr-defined]
    theirs = stock.sample(logits, stock.metadata_of(chosen, NUM_TOKENS))  # type: ignore[attr-defined]
    assert ours.tolist() == theirs.sampled_token_ids[:, 0].tolist()
