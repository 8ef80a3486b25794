"""Whether a GPU engine samples with Ballast's kernels: decided once, when it has loaded, and said in the log.

``engine.kernels: auto`` uses them where they were measured to win; on a GPU they have not been measured, so that only
``on`` uses them there (`benchmarks/kernels/gpu.py`).
"""

import logging
import time
from typing import Any

import torch
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from kernels.sample import op
from kernels.sample.types import Params
from serving.engine import kernel_setup
from serving.engine.gpu_sampler import (
    CountedGpuSampler,
    CountedRejectionSampler,
    GpuKernelSampler,
    SparsePenalties,
    sparse_capacity,
)
from serving.engine.kernel_setup import Mode
from serving.engine.sampling_counts import Count, SamplingCounts

logger = logging.getLogger("ballast.engine")

_OF_SAMPLER = (
    "req_states", "sampling_states", "penalties_state", "logit_bias_state", "bad_words_state",
    "logprob_token_ids_state", "thinking_budget_state", "trace_replay_state", "return_sampling_mask", "compute_nans",
    "logprobs_mode", "needs_logits_processing", "get_logprobs_dims", "sample", "add_request", "apply_staged_writes",
)  # fmt: skip
_OF_STATES = {
    "sampling_states": ("temperature", "top_k", "top_p", "min_p", "seeds", "vocab_size"),
    "penalties_state": ("use_penalty", "output_bin_counts"),
    "logit_bias_state": ("use_logit_bias", "apply_logit_bias"),
    "bad_words_state": ("num_bad_words", "apply_bad_words"),
    "thinking_budget_state": ("enabled",),
    "req_states": ("prefill_len", "max_num_reqs", "max_model_len", "vocab_size", "device", "index_to_req_id"),
}


def install(runner: Any, mode: Mode, counts: SamplingCounts) -> None:
    """Give ``runner``, vLLM's V2 model runner with its weights loaded, a sampler. Raises KernelsUnusable."""
    started_s = time.monotonic()
    reason = _not_wanted(mode) or why_not(runner)
    stock = runner.sampler
    if reason is None:
        reason = kernel_setup.fault_found(op.sample, stock.req_states.device)
    if reason is None:
        sparse = _sparse_penalties(runner)
        _warm_up(runner, sparse)
        runner.sampler = GpuKernelSampler(stock, counts, sparse)
        _count_verified(runner.rejection_sampler, counts, Count.UNSUPPORTED)
        counts.set(Count.IS_ACTIVE, 1)
        logger.info("sampling with Ballast's kernels (loaded and tested in %.2f s)", time.monotonic() - started_s)
        return
    kernel_setup.say_why_not("sampling", reason, mode)
    if type(stock) is Sampler:
        stock.__class__ = CountedGpuSampler
        stock.counts = counts
    _count_verified(runner.rejection_sampler, counts, Count.STOCK)


def _count_verified(rejection_sampler: Any, counts: SamplingCounts, count: Count) -> None:
    if type(rejection_sampler) is RejectionSampler:
        rejection_sampler.__class__ = CountedRejectionSampler
        rejection_sampler.counts, rejection_sampler.count = counts, count


def _warm_up(runner: Any, sparse: SparsePenalties | None) -> None:
    """Triton compiles a kernel for each type and kind of argument, or reads it from its cache: not in a request."""
    states = runner.sampler.req_states
    zero = torch.zeros(1, device=states.device)
    whole = zero.to(torch.int64)
    params = Params(zero, zero.to(torch.int32), zero + 1, zero, whole, whole)
    for dtype in {runner.model_config.dtype, torch.float32}:  # raw logits, and those with biases and bans
        logits = torch.zeros(1, states.vocab_size, dtype=dtype, device=states.device)
        for num_logprobs in (None, 0, 1, 5, 16):
            op.sample(logits, params, None, None, num_logprobs)
        if sparse is not None:
            sparse.warm_up(logits)
            edits = sparse.edits(logits, whole)
            for num_logprobs in (None, 5):
                op.sample(logits, params, None, edits, num_logprobs)


def _not_wanted(mode: Mode) -> str | None:
    return {
        "on": None,
        "off": "engine.kernels is off",
        "auto": "the kernels have not been measured on a GPU; engine.kernels: on uses them",
    }[mode]


def why_not(runner: Any) -> str | None:
    """What stands against the kernels in this engine; None: nothing."""
    if (reason := kernel_setup.why_not_this_version()) is not None:
        return reason
    sampler: Any = getattr(runner, "sampler", None)
    if type(sampler) is not Sampler:
        return f"the runner's sampler is {type(sampler).__name__}, not that of vLLM's model runner V2"
    missing = [name for name in _OF_SAMPLER if not hasattr(sampler, name)]
    missing += [
        f"{state}.{name}"
        for state, names in _OF_STATES.items()
        for name in names
        if state not in missing and not hasattr(getattr(sampler, state), name)
    ]
    if missing:
        return f"vLLM's sampler has no {', '.join(missing)}"
    if sampler.logprobs_mode != "raw_logprobs":
        return f"logprobs_mode is {sampler.logprobs_mode}"
    if sampler.return_sampling_mask or sampler.trace_replay_state is not None:
        return "the engine returns sampling masks or replays traces"
    return None


def _sparse_penalties(runner: Any) -> SparsePenalties | None:
    """None where vLLM's own code looks at the counts: to verify drafts, or for rows with a thinking budget."""
    states = runner.sampler.req_states
    capacity = sparse_capacity(states.max_model_len, states.vocab_size)
    if capacity is None or runner.rejection_sampler is not None or runner.sampler.thinking_budget_state.enabled:
        return None
    return SparsePenalties(states, capacity)
