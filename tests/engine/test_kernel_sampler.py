"""Ballast's sampler in vLLM's place: on vLLM's own batch it chooses as vLLM does, where that is determined, and the
same token for the same request whoever else is there."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.sample.sampler import Sampler
from vllm.v1.structured_output.utils import apply_grammar_bitmask

from serving.engine import kernel_setup
from serving.engine.batch_rules import Seeds, grammar_mask_of
from serving.engine.kernel_sampler import KernelSampler
from serving.engine.kernel_setup import KernelsUnusable, install
from serving.engine.sampling_counts import Count, SamplingCounts
from tests.support.vllm_batch import NUM_TOKENS, FakeRunner, rows

GREEDY: dict[str, Any] = {"temperature": 0.0}
ASKED: dict[str, dict[str, Any]] = {
    "plain": GREEDY,
    "repetition": GREEDY | {"repetition_penalty": 1.7},
    "frequency": GREEDY | {"frequency_penalty": 1.5},
    "presence": GREEDY | {"presence_penalty": -1.2},
    "all penalties": GREEDY | {"repetition_penalty": 0.7, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    "bias": GREEDY | {"logit_bias": {7: 5.0, 8: -100.0}},
    "bias and penalty": GREEDY | {"logit_bias": {7: 9.0}, "repetition_penalty": 2.0},
    "allowed": GREEDY | {"allowed_token_ids": [3, 5, 700, 1002]},
    "bad words": GREEDY | {"bad_words_token_ids": [[4], [11, 12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]},
    "minimum": GREEDY | {"min_tokens": 5, "stop_token_ids": [9, 900]},
    "top of one": {"temperature": 1.0, "top_k": 1},
    "narrow": {"temperature": 1.0, "top_p": 1e-6},
    "min-p of one": {"temperature": 0.5, "min_p": 1.0},
}


@pytest.fixture
def counts() -> SamplingCounts:
    return SamplingCounts.made()


@pytest.fixture
def runner(counts: SamplingCounts) -> FakeRunner:
    made = FakeRunner()
    made.sampler = KernelSampler(made, counts)
    return made


def test_it_chooses_as_vllm_does_where_the_choice_is_determined(runner: FakeRunner, counts: SamplingCounts) -> None:
    """With every rule in the batch, over a dozen steps that change what penalties and bans are about."""
    rng = random.Random(1)
    for number, (name, asked) in enumerate(ASKED.items()):
        runner.add(name, prompt=[rng.randrange(20) for _ in range(5)], output=[4, 11][: number % 3], **asked)
    stock = Sampler()
    for step in range(12):
        logits = rows(len(ASKED), seed=step)
        logits[:, :20] += 6.0  # so that what the rules are about is what would be chosen
        expected = runner.tokens(logits.clone(), stock)
        assert runner.tokens(logits) == expected
        runner.grow(expected)
    assert counts.values()[Count.KERNELS] == 12 * len(ASKED)
    assert counts.values()[Count.UNSUPPORTED] == 0


def test_requests_that_come_go_and_come_again_keep_their_penalties(runner: FakeRunner) -> None:
    """As they do when they end, or are preempted; rows move meanwhile."""
    stock = Sampler()
    asked = GREEDY | {"frequency_penalty": 2.0}
    for name in "abcd":
        runner.add(name, output=[5, 5], **asked)
    for step, gone in enumerate(["", "a", "c", ""]):
        if gone:
            output = runner.requests[gone].output_token_ids
            runner.remove(gone)
            runner.add(gone, output=output if gone == "c" else [6, 6, 6], **asked)
        logits = rows(4, seed=step)
        logits[:, 5:7] += 8.0
        expected = runner.tokens(logits.clone(), stock)
        assert runner.tokens(logits) == expected
        runner.grow(expected)


def test_a_seeded_request_gets_the_same_token_alone_and_in_any_company(runner: FakeRunner) -> None:
    row = rows(1, seed=3)
    seeded = {"temperature": 1.3, "top_p": 0.95, "seed": 11}
    runner.add("alone", **seeded)
    alone = runner.tokens(row)["alone"]
    for others in (1, 7, 9):
        for index in range(others):
            runner.add(
                f"{others}-{index}", **(GREEDY if index % 2 else {"temperature": 0.7, "top_k": 5, "seed": index})
            )
        logits = rows(runner.input_batch.num_reqs, seed=others)
        logits[runner.input_batch.req_id_to_index["alone"]] = row[0]
        assert runner.tokens(logits)["alone"] == alone
        runner.remove(*runner.requests)
        runner.add("first", **GREEDY)  # and in another row from here on
        runner.add("alone", **seeded)


def test_a_continued_request_draws_as_the_one_it_continues(runner: FakeRunner) -> None:
    """On another replica the tokens so far are its prompt: the place in the sequence counts, not the step."""
    row = rows(2, seed=4)
    row[1] = row[0]
    runner.add("begun here", prompt=[1, 2, 3], output=[4, 5], temperature=1.0, seed=9)
    runner.add("continued", prompt=[1, 2, 3, 4, 5], temperature=1.0, seed=9)
    tokens = runner.tokens(row)
    assert tokens["begun here"] == tokens["continued"]


def test_requests_without_a_seed_have_one_of_their_own(runner: FakeRunner) -> None:
    logits = rows(1, seed=5, spread=0.5).repeat(16, 1)
    for index in range(16):
        runner.add(str(index), temperature=2.0)
    first = runner.tokens(logits)
    assert len(set(first.values())) > 8
    assert runner.tokens(logits) == first
    runner.grow(first)
    assert runner.tokens(logits) != first


def test_seeds_of_requests_that_are_gone_are_forgotten() -> None:
    seeds = Seeds(max_num_reqs=2, rng=random.Random(0))
    for index in range(100):
        batch = SimpleNamespace(generators={}, req_ids=[str(index)], req_id_to_index={str(index): 0})
        assert seeds.of(batch).tolist() == seeds.of(batch).tolist()
    assert len(seeds._drawn) <= 9


@pytest.mark.parametrize("seed", [0, 2**63 - 1, -1, -(2**63)])
def test_every_seed_that_vllm_takes_is_taken(runner: FakeRunner, seed: int) -> None:
    runner.add("a", temperature=1.0, seed=seed)
    assert 0 <= runner.tokens(rows(1))["a"] < NUM_TOKENS


def test_logprobs_are_those_of_vllm(runner: FakeRunner) -> None:
    runner.add("a", temperature=0.0, logprobs=5)
    runner.add("b", temperature=0.0)
    logits = rows(2, seed=6)
    expected, found = (runner.sample(logits.clone(), sampler).logprobs_tensors for sampler in (Sampler(), None))
    assert torch.equal(expected.logprob_token_ids, found.logprob_token_ids)
    assert torch.allclose(expected.logprobs, found.logprobs, atol=1e-4)
    assert torch.equal(expected.selected_token_ranks.to(torch.int64), found.selected_token_ranks.to(torch.int64))


def test_logprobs_of_a_prompt_are_those_of_vllm(runner: FakeRunner) -> None:
    logits, ids = rows(20, seed=7), torch.arange(20)
    for number in (3, 40):
        stock, ours = Sampler(), runner.sampler
        expected = stock.gather_logprobs(stock.compute_logprobs(logits), number, ids)
        found = ours.gather_logprobs(ours.compute_logprobs(logits), number, ids)
        assert torch.equal(expected.logprob_token_ids, found.logprob_token_ids)
        assert torch.allclose(expected.logprobs, found.logprobs, atol=1e-4)


def test_logprobs_of_named_tokens_are_those_of_vllm(runner: FakeRunner) -> None:
    runner.add("a", temperature=0.0, logprobs=1, logprob_token_ids=[5, 6])
    logits = rows(1, seed=8)
    expected, found = (runner.sample(logits.clone(), sampler).logprobs_tensors for sampler in (Sampler(), None))
    assert torch.equal(expected.logprob_token_ids, found.logprob_token_ids)
    assert torch.allclose(expected.logprobs, found.logprobs, atol=1e-4)


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_grammar_is_obeyed_and_gives_vllms_logprobs(runner: FakeRunner, logprobs: int | None) -> None:
    """The scheduler sends grammars in an order of its own, for those requests that have one."""
    for name in ("free", "bound", "bound too"):
        runner.add(name, temperature=0.0, logprobs=logprobs, min_tokens=2, stop_token_ids=[9])
    bits = np.zeros((2, -(-NUM_TOKENS // 32)), np.int32)
    bits[0, 3], bits[1, 0] = 0b1010, 1 << 9  # tokens 97 and 99; only the end, which comes too soon
    grammar = SimpleNamespace(structured_output_request_ids=["bound too", "bound"], grammar_bitmask=bits)
    logits = rows(3, seed=9)
    masked = logits.clone()
    apply_grammar_bitmask(SimpleNamespace(scheduled_spec_decode_tokens={}), grammar, runner.input_batch, masked)
    for request in runner.requests.values():
        request.sampling_params.structured_outputs = "any"
    runner.sampler.hold_grammar(grammar_mask_of(runner.input_batch, grammar, NUM_TOKENS))
    found = runner.sample(logits)
    tokens = dict(zip(runner.input_batch.req_ids, found.sampled_token_ids.squeeze(-1).tolist(), strict=True))
    assert tokens["bound"] == 9
    assert tokens["bound too"] in (97, 99)
    if logprobs is not None:
        expected = runner.sample(masked, Sampler()).logprobs_tensors
        assert torch.allclose(expected.logprobs[:, :2], found.logprobs_tensors.logprobs[:, :2], atol=1e-4)
    next_tokens = runner.tokens(rows(3, seed=9))
    assert next_tokens["free"] == tokens["free"]
    assert next_tokens["bound"] != 9, "a grammar is for one step"


def test_what_the_kernels_do_not_know_vllm_samples_and_is_counted(runner: FakeRunner, counts: SamplingCounts) -> None:
    runner.add("thinks", temperature=0.0)
    runner.add("a", temperature=1.0, seed=3)
    logits = rows(2, seed=10)
    before = runner.tokens(logits)
    runner.input_batch.thinking_token_budget_reqs.add("thinks")
    assert runner.tokens(logits) == before
    assert counts.values()[Count.UNSUPPORTED] == 1
    assert counts.values()[Count.KERNELS] == 3


def test_a_faulty_row_is_counted_and_disturbs_no_other(runner: FakeRunner, counts: SamplingCounts) -> None:
    for name in ("nan", "nothing", "well"):
        runner.add(name, temperature=1.0, seed=1)
    logits = rows(3, seed=11)
    well = runner.tokens(logits)["well"]
    logits[0, 17], logits[1] = float("nan"), float("-inf")
    assert runner.tokens(logits)["well"] == well
    assert (counts.values()[Count.NAN], counts.values()[Count.NOTHING]) == (1, 1)


# ---------------------------------------------------------------------------------------------------------- when loaded


def test_the_kernels_are_used_where_they_can_be(counts: SamplingCounts) -> None:
    made = FakeRunner()
    install(made, "auto", counts)
    assert isinstance(made.sampler, KernelSampler)
    assert counts.values()[Count.IS_ACTIVE] == 1


@pytest.mark.parametrize("fault", ["version", "runner", "batch", "mode", "processor", "self-test", "off"])
def test_elsewhere_vllm_samples_and_the_reason_is_said(
    counts: SamplingCounts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    stranger = SimpleNamespace(is_argmax_invariant=lambda: True, update_state=lambda _: None)
    made = FakeRunner(processors=[stranger]) if fault == "processor" else FakeRunner()
    words = {
        "version": "0.99.0 is not one", "runner": "has no requests", "batch": "has no input_batch.top_k_reqs",
        "mode": "logprobs_mode is processed_logits", "processor": "logits processors of its own",
        "self-test": "self-test fails on rows [", "off": "engine.kernels is off",
    }  # fmt: skip
    if fault == "version":
        monkeypatch.setattr(kernel_setup.vllm, "__version__", "0.99.0")
    elif fault == "runner":
        del made.requests
    elif fault == "batch":
        del made.input_batch.top_k_reqs
    elif fault == "mode":
        made.sampler.logprobs_mode = "processed_logits"
    elif fault == "self-test":
        right = kernel_setup.reference.verdicts
        monkeypatch.setattr(kernel_setup.reference, "verdicts", lambda *given: [*reversed(right(*given))])
    if fault != "off":
        with pytest.raises(KernelsUnusable) as caught:
            install(made, "on", counts)
        assert words[fault] in str(caught.value)
    with caplog.at_level("INFO", "ballast.engine"):
        install(made, "off" if fault == "off" else "auto", counts)
    assert words[fault] in caplog.text
    assert not isinstance(made.sampler, KernelSampler)
    assert counts.values()[Count.IS_ACTIVE] == 0
    if fault == "off":
        made.add("a", temperature=0.0)
        made.tokens(rows(1))
        assert counts.values()[Count.STOCK] == 1
