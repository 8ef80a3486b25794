"""vLLM's own path on the CPU: its `Sampler` and what fills its metadata, as the V1 model runner calls them."""

from collections.abc import Sequence

import torch
import xgrammar
from vllm.v1.sample.logits_processor import LogitsProcessors, MinPLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from kernels.penalties.rules import Rules
from kernels.sample.types import Params

_SAMPLER = Sampler()


def metadata_of(  # each of them is what a request may ask for
    params: Params,
    num_tokens: int,
    *,
    seeded: bool = False,
    num_logprobs: int | None = None,
    rules: Sequence[Rules] = (),
    prompts: Sequence[Sequence[int]] = (),
    outputs: Sequence[Sequence[int]] = (),
) -> SamplingMetadata:
    """What the runner would hand to the sampler for these rows."""
    num_rows = len(params.seed)
    greedy = params.temperature < 1e-5
    zeros = torch.zeros(num_rows)
    prompt_ids = None
    if rules:
        prompt_ids = torch.full((num_rows, max(map(len, prompts))), num_tokens)
        for n, prompt in enumerate(prompts):
            prompt_ids[n, : len(prompt)] = torch.tensor(prompt)
    return SamplingMetadata(
        temperature=None if greedy.all() else params.temperature,
        all_greedy=bool(greedy.all()),
        all_random=not greedy.any(),
        top_p=params.top_p if (params.top_p < 1).any() else None,
        top_k=torch.where(params.top_k > 0, params.top_k, num_tokens) if (params.top_k > 0).any() else None,
        generators={n: torch.Generator().manual_seed(n) for n in range(num_rows)} if seeded else {},
        max_num_logprobs=num_logprobs,
        no_penalties=not rules,
        prompt_token_ids=prompt_ids,
        frequency_penalties=torch.tensor([rule.frequency for rule in rules]) if rules else zeros,
        presence_penalties=torch.tensor([rule.presence for rule in rules]) if rules else zeros,
        repetition_penalties=torch.tensor([rule.repetition for rule in rules]) if rules else zeros + 1,
        output_token_ids=[list(output) for output in outputs] or [[] for _ in range(num_rows)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors([_min_p(params.min_p)] if (params.min_p > 0).any() else []),
    )


def _min_p(min_p: torch.Tensor) -> MinPLogitsProcessor:
    """The processor in the state that its bookkeeping of requests would give it."""
    processor = object.__new__(MinPLogitsProcessor)
    processor.min_p_count, processor.min_p = len(min_p), min_p.unsqueeze(1).clone()
    return processor


def sample(logits: torch.Tensor, metadata: SamplingMetadata) -> object:
    """Vllm's `SamplerOutput` for logits [N, V]. (`top_k` is copied: vLLM changes it.)"""
    if metadata.top_k is not None:
        metadata.top_k = metadata.top_k.clone()
    return _SAMPLER(logits, metadata)


def apply_grammar(logits: torch.Tensor, mask: torch.Tensor) -> None:
    """As `v1/structured_output/utils.py::apply_grammar_bitmask` does it on a CPU."""
    if logits.dtype == torch.float32:
        xgrammar.apply_token_bitmask_inplace(logits, mask)
        return
    wide = logits.to(torch.float32)
    xgrammar.apply_token_bitmask_inplace(wide, mask)
    logits.copy_(wide.to(logits.dtype))
