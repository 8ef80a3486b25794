"""Whether an engine samples, and drafts, with Ballast's kernels: decided once, when it has loaded, and said in the log.

``engine.kernels`` is ``auto`` (where they can be used), ``on`` (the engine does not start without them) or ``off``.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

import torch
import vllm
from vllm.v1.spec_decode.ngram_proposer import NgramProposer

from kernels.sample import cpu, reference
from kernels.sample.types import Edits, Params, Sampled
from kernels.warm_up import warm_up
from serving.engine import ngram_drafter
from serving.engine.batch_rules import PROCESSORS
from serving.engine.kernel_sampler import CountedSampler, KernelSampler
from serving.engine.sampling_counts import Count, SamplingCounts

logger = logging.getLogger("ballast.engine")

Mode = Literal["auto", "on", "off"]
KERNELS = "ballast_kernels"
"""The key of vLLM's `additional_config` that holds ``engine.kernels``."""
VERSIONS = ("0.29.",)
"""Of vLLM: those whose batch and sampler were read for `batch_rules` and `kernel_sampler`."""
_OF_RUNNER = ("sampler", "input_batch", "requests", "optimistic_seq_lens_cpu", "execute_model_state")
_OF_BATCH = (
    "req_ids", "req_id_to_index", "num_reqs", "generators", "vocab_size", "max_num_reqs", "temperature_cpu_tensor",
    "top_p_cpu_tensor", "top_k_cpu_tensor", "top_k_reqs", "no_penalties", "repetition_penalties_reqs",
    "frequency_penalties_reqs", "presence_penalties_reqs", "has_allowed_token_ids", "bad_words_token_ids",
    "req_output_token_ids", "allowed_token_ids_mask_cpu_tensor", "logitsprocs", "thinking_token_budget_reqs",
    "sampling_metadata",
)  # fmt: skip
_SELF_TEST_V = 1003


class KernelsUnusable(RuntimeError):
    """``engine.kernels: on``, and they cannot be used."""


def install(runner: Any, mode: Mode, counts: SamplingCounts) -> None:
    """Give ``runner``, vLLM's V1 model runner, a sampler, and a drafter where it drafts by prompt lookup. Raises
    KernelsUnusable."""
    started_s = time.monotonic()
    if type(getattr(runner, "drafter", None)) is NgramProposer:
        _install_drafter(runner, mode)
    reason = "engine.kernels is off" if mode == "off" else why_not(runner)
    if reason is None:
        warm_up()
        reason = fault_found()
    stock = runner.sampler
    if reason is None:
        runner.sampler = KernelSampler(runner, counts)
        _count(stock, counts, Count.UNSUPPORTED)  # the rejection sampler keeps it: it chooses where drafts are verified
        counts.set(Count.IS_ACTIVE, 1)
        logger.info("sampling with Ballast's kernels (loaded and tested in %.2f s)", time.monotonic() - started_s)
        return
    say_why_not("sampling", reason, mode)
    _count(stock, counts, Count.STOCK)


def _install_drafter(runner: Any, mode: Mode) -> None:
    reason = "engine.kernels is off" if mode == "off" else why_not_this_version() or ngram_drafter.why_not(runner)
    reason = reason or ngram_drafter.fault_found()
    if reason is None:
        runner.drafter = ngram_drafter.IndexedNgramProposer(runner.drafter, runner)
        logger.info("drafting by prompt lookup with Ballast's n-gram index")
    else:
        say_why_not("drafting", reason, mode)


def say_why_not(doing: str, reason: str, mode: Mode) -> None:
    """In the log; or, where the engine must have them, raises KernelsUnusable."""
    if mode == "on":
        raise KernelsUnusable(f"engine.kernels is on, but the kernels cannot be used: {reason}")
    log = logger.info if mode == "off" else logger.warning
    log("%s with vLLM's own code: %s", doing, reason)


def _count(sampler: Any, counts: SamplingCounts, count: Count) -> None:
    sampler.__class__ = CountedSampler
    sampler.counts, sampler.count = counts, count


def why_not_this_version() -> str | None:
    """Whether vLLM is another than was read; None: it is not."""
    if vllm.__version__.startswith(VERSIONS):
        return None
    return f"vLLM {vllm.__version__} is not one of those they were made for ({', '.join(VERSIONS)}x)"


def why_not(runner: Any) -> str | None:
    """What stands against the kernels in this engine; None: nothing."""
    if (reason := why_not_this_version()) is not None:
        return reason
    missing = [name for name in _OF_RUNNER if not hasattr(runner, name)]
    missing += [f"input_batch.{name}" for name in _OF_BATCH if not hasattr(getattr(runner, "input_batch", None), name)]
    if missing:
        return f"vLLM's runner has no {', '.join(missing)}"
    if runner.sampler.logprobs_mode != "raw_logprobs":
        return f"logprobs_mode is {runner.sampler.logprobs_mode}"
    others = [type(each).__name__ for each in runner.input_batch.logitsprocs.all if type(each) not in PROCESSORS]
    if others:
        return f"the engine has logits processors of its own: {', '.join(others)}"
    return None


def fault_found(sample: Callable[..., Sampled] = cpu.sample, device: torch.device | str = "cpu") -> str | None:
    """What a ``sample`` does other than it should on a few made-up rows; None: nothing."""
    num_rows = 12
    rng = torch.Generator().manual_seed(1)
    logits = (4.0 * torch.randn(num_rows, _SELF_TEST_V, generator=rng)).to(torch.bfloat16)
    params = Params(
        temperature=torch.tensor([0.0, 0.7, 1.0] * 4),
        top_k=torch.tensor([0, 50, 1] * 4, dtype=torch.int32),
        top_p=torch.tensor([1.0, 0.9, 0.5, 0.99] * 3),
        min_p=torch.tensor([0.0, 0.0, 0.05] * 4),
        seed=torch.arange(num_rows),
        position=torch.arange(num_rows) * 7,
    )
    mask = torch.full((num_rows, -(-_SELF_TEST_V // 32)), -1, dtype=torch.int32)
    mask[3:6, ::2] = 0
    ids = torch.arange(num_rows, dtype=torch.int32)
    edits = Edits(torch.arange(num_rows + 1, dtype=torch.int32), ids, torch.full((num_rows,), 9.0))
    expected = reference.verdicts(logits, params, mask, edits)
    moved_params = Params(*(getattr(params, each.name).to(device) for each in fields(params)))
    moved_edits = Edits(*(getattr(edits, each.name).to(device) for each in fields(edits)))
    found = sample(logits.to(device), moved_params, mask.to(device), moved_edits).token.tolist()
    wrong = [row for row, verdict in enumerate(expected) if found[row] != verdict.token]
    return f"their self-test fails on rows {wrong}" if wrong else None
