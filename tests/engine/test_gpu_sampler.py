"""Ballast's sampler in the place of vLLM's V2 one (GPU), in Triton's interpreter: it chooses what the CPU engine's
chooses for the same requests, whoever else is there."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.sample.sampler import Sampler as V1Sampler
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.sampler import Sampler

from serving.engine import gpu_setup, kernel_setup
from serving.engine.gpu_sampler import CountedGpuSampler, GpuKernelSampler, SparsePenalties, sparse_capacity
from serving.engine.gpu_setup import install
from serving.engine.kernel_sampler import KernelSampler
from serving.engine.kernel_setup import KernelsUnusable
from serving.engine.sampling_counts import VARIABLE, Count, SamplingCounts
from tests.support.gpu_batch import MAX_MODEL_LEN, FakeGpuRunner, without_a_gpu
from tests.support.vllm_batch import FakeRunner, rows

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(torch.cuda.is_available(), reason="its fakes stand for a GPU: with one, the engine is run"),
]

ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 0.8, "seed": 1},
    "top-k": {"temperature": 1.2, "top_k": 20, "seed": 2},
    "top-p": {"temperature": 1.0, "top_p": 0.8, "seed": -3},
    "all filters": {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 2**62},
    "repetition": {"temperature": 0.0, "repetition_penalty": 1.7},
    "counts": {"temperature": 0.7, "frequency_penalty": 0.5, "presence_penalty": 1.0, "seed": 5},
}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SamplingCounts]:
    monkeypatch.delenv(VARIABLE, raising=False)
    without_a_gpu(monkeypatch)
    with np.errstate(all="ignore"):  # the interpreter computes with numpy, which warns where a device does not
        yield SamplingCounts.made()


@pytest.fixture
def runner(counts: SamplingCounts) -> FakeGpuRunner:
    made = FakeGpuRunner()
    sparse = SparsePenalties(made.req_states, MAX_MODEL_LEN)
    made.sampler = GpuKernelSampler(made.sampler, counts, sparse)
    return made


def test_it_chooses_what_the_cpu_engine_chooses(runner: FakeGpuRunner, counts: SamplingCounts) -> None:
    """Over steps that change what penalties are about, with a request that is preempted between them."""
    cpu = FakeRunner()
    cpu.sampler = KernelSampler(cpu, SamplingCounts.made())
    for name, asked in ASKED.items():
        for each in (cpu, runner):
            each.add(name, prompt=[1, 2, 3, 4], output=[5], **asked)
    for step in range(3):
        logits = rows(len(ASKED), seed=step).to(torch.bfloat16)
        logits[:, :8] += 4.0
        tokens = cpu.tokens(logits)
        assert runner.step(logits, list(ASKED)) == tokens
        cpu.grow(tokens)
        if step == 1:
            output = runner.tokens["counts"][4:]
            runner.remove("counts")
            runner.add("counts", prompt=[1, 2, 3, 4], output=output, **ASKED["counts"])
    assert counts.values()[Count.KERNELS] == 3 * len(ASKED)


def test_a_request_gets_the_same_token_alone_and_beside_one_with_a_bias(
    runner: FakeGpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias is set in a float32 copy of the whole batch."""

    def banned(state: LogitBiasState, logits: torch.Tensor, slots: torch.Tensor, *_: Any) -> None:
        logits[torch.from_numpy(state.use_logit_bias)[slots], :1000] = float("-inf")

    monkeypatch.setattr(LogitBiasState, "apply_logit_bias", banned)
    row = rows(1, seed=1).to(torch.bfloat16)
    runner.add("alone", **ASKED["all filters"])
    runner.add("flat", temperature=2.0, seed=8)
    runner.add("biased", temperature=0.0, logit_bias={5: 1.0})
    alone = runner.step(row, ["alone"])["alone"], runner.step(row, ["flat"])["flat"]
    runner.tokens["alone"].pop()
    runner.tokens["flat"].pop()
    together = runner.step(row.repeat(3, 1), ["biased", "flat", "alone"])
    assert (together["alone"], together["flat"]) == alone
    assert together["biased"] >= 1000


def test_a_token_of_a_prompt_that_is_still_read_is_not_counted(runner: FakeGpuRunner) -> None:
    runner.add("a", prompt=[1, 2, 3], temperature=0.0, presence_penalty=2.0)
    logits = rows(1, seed=2)
    first = runner.step(logits, ["a"], prefilling=["a"])["a"]
    assert runner.step(logits, ["a"])["a"] == first
    assert runner.step(logits - 50 * (torch.arange(1003) != first), ["a"])["a"] == first  # too likely to be penalised
    logits[0, first] = logits.max() + 1
    other = int(logits[0].topk(2).indices[1])
    assert runner.step(logits, ["a"])["a"] == other


@pytest.mark.parametrize("number", [0, 5])
def test_logprobs_are_those_of_vllm(runner: FakeGpuRunner, number: int) -> None:
    """Of raw logits, though a penalty changes what is chosen."""
    runner.add("a", temperature=0.0, logprobs=number)
    runner.add("b", prompt=[7], temperature=0.0, repetition_penalty=5.0)
    logits = rows(2, seed=6)
    found = runner.sampler(logits, runner.batch(["a", "b"]))
    stock = V1Sampler()
    expected = stock.gather_logprobs(stock.compute_logprobs(logits), number, found.sampled_token_ids.squeeze(-1))
    assert torch.equal(found.logprobs_tensors.logprob_token_ids, expected.logprob_token_ids.to(torch.int64))
    assert torch.allclose(found.logprobs_tensors.logprobs, expected.logprobs, atol=1e-4)
    assert torch.equal(found.logprobs_tensors.selected_token_ranks, expected.selected_token_ranks.to(torch.int64))


def test_nobody_asks_for_logprobs_and_none_are_made(runner: FakeGpuRunner) -> None:
    runner.add("a", temperature=0.0)
    assert runner.sampler(rows(1), runner.batch(["a"])).logprobs_tensors is None


def test_what_the_kernels_do_not_know_vllm_samples_and_is_counted(
    counts: SamplingCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here penalties, because the engine keeps vLLM's dense counts."""
    made = FakeGpuRunner()
    made.sampler = GpuKernelSampler(made.sampler, counts, None)
    monkeypatch.setattr(type(made.sampler.penalties_state), "apply_staged_writes", lambda _: None)
    monkeypatch.setattr(Sampler, "sample", lambda _, logits, *rest: (torch.full((len(logits),), 77), logits))
    made.add("plain", temperature=0.0)
    made.add("penalised", temperature=0.0, frequency_penalty=1.0)
    logits = rows(2, seed=3)
    assert made.step(logits, ["plain", "penalised"]) == {"plain": int(logits[0].argmax()), "penalised": 77}
    assert (counts.values()[Count.KERNELS], counts.values()[Count.UNSUPPORTED]) == (1, 1)


def test_faulty_rows_are_told_in_time(runner: FakeGpuRunner, counts: SamplingCounts) -> None:
    runner.add("a", temperature=0.0)
    logits = rows(1)
    logits[0, 5] = float("nan")
    batch = runner.batch(["a"])
    for _ in range(65):
        runner.sampler(logits, batch)
    assert counts.values()[Count.NAN] == 64


@pytest.mark.parametrize(
    ("max_model_len", "vocab_size", "capacity"), [(8192, 151_936, 8192), (131_072, 151_936, None), (4096, 1003, None)]
)
def test_counts_are_sparse_where_that_is_smaller(max_model_len: int, vocab_size: int, capacity: int | None) -> None:
    assert sparse_capacity(max_model_len, vocab_size) == capacity


# ---------------------------------------------------------------------------------------------------------- when loaded


def test_the_kernels_are_used_where_they_are_asked_for(counts: SamplingCounts) -> None:
    made = FakeGpuRunner()
    install(made, "on", counts)
    assert type(made.sampler) is GpuKernelSampler
    assert counts.values()[Count.IS_ACTIVE] == 1
    made.add("a", temperature=0.0, repetition_penalty=2.0)
    assert made.sampler.penalties_state.output_bin_counts is None
    logits = rows(1)
    assert made.step(logits, ["a"])["a"] == int(logits.argmax())


@pytest.mark.parametrize("fault", ["version", "state", "sampler", "mode", "trace", "self-test", "off", "auto"])
def test_elsewhere_vllm_samples_and_the_reason_is_said(
    counts: SamplingCounts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    made = FakeGpuRunner()
    words = {
        "version": "0.99.0 is not one", "state": "has no sampling_states.seeds", "sampler": "sampler is object",
        "mode": "logprobs_mode is processed_logits", "trace": "replays traces", "self-test": "self-test fails on rows",
        "off": "engine.kernels is off", "auto": "not been measured on a GPU",
    }  # fmt: skip
    if fault == "version":
        monkeypatch.setattr(kernel_setup.vllm, "__version__", "0.99.0")
    elif fault == "state":
        del made.sampler.sampling_states.seeds
    elif fault == "sampler":
        made.sampler = object()
    elif fault == "mode":
        made.sampler.logprobs_mode = "processed_logits"
    elif fault == "trace":
        made.sampler.trace_replay_state = SimpleNamespace()
    elif fault == "self-test":
        monkeypatch.setattr(gpu_setup.op, "sample", lambda *given: SimpleNamespace(token=torch.full((12,), -1)))
    if fault in ("off", "auto"):
        with caplog.at_level("INFO", "ballast.engine"):
            install(made, fault, counts)
        assert words[fault] in caplog.text
        assert type(made.sampler) is CountedGpuSampler
    else:
        with pytest.raises(KernelsUnusable) as caught:
            install(made, "on", counts)
        assert words[fault] in str(caught.value)
        assert not isinstance(made.sampler, GpuKernelSampler)
    assert counts.values()[Count.IS_ACTIVE] == 0
