"""vLLM's V1 sampler with Ballast's kernels in it: exact, and the same token for the same request in any batch.

A token is a function of its row of logits and of (seed, position); vLLM's own sampler draws from a generator per
request, row by row in Python, and cuts ties differently as the batch grows. What the kernels have no answer to (a
thinking budget) vLLM's code samples, for those rows alone, and a counter says so.

A step that verifies drafts (speculative decoding) is vLLM's rejection sampler's, bonus token and all: it keeps the
sampler that it was made with. Greedy text is what it would be without drafts. With a temperature its distribution is,
but the tokens are not: which steps verify drafts, and so draw from vLLM's generators, depends on the other requests.
"""

from dataclasses import replace
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from kernels.grammar_mask import cpu as grammar_mask
from kernels.logprobs.cpu import logprobs as kernel_logprobs
from kernels.sample import cpu
from kernels.sample.types import Sampled, Status
from serving.engine.batch_rules import PenaltyRows, Seeds, mask_of, params_of
from serving.engine.sampling_counts import Count, SamplingCounts

MAX_LOGPROBS = 32
"""More than this per token are vLLM's to sort."""


class KernelSampler(Sampler):
    """In place of ``runner.sampler``. ``runner`` is vLLM's V1 model runner, whose batch is read at each step."""

    def __init__(self, runner: Any, counts: SamplingCounts) -> None:
        super().__init__()
        batch = runner.input_batch
        self._runner = runner
        self._counts = counts
        self._seeds = Seeds(batch.max_num_reqs)
        self._penalties = PenaltyRows(batch.max_num_reqs, batch.vocab_size)
        self._grammar: torch.Tensor | None = None

    def hold_grammar(self, mask: torch.Tensor) -> None:
        """The next batch's grammars, int32 [N, ceil(V / 32)]: they are applied while sampling."""
        self._grammar = mask

    def forward(
        self,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
        predict_bonus_token: bool = False,
        logprobs_mode_override: Any = None,
    ) -> SamplerOutput:
        """See `Sampler.forward`."""
        grammar, self._grammar = self._grammar, None
        batch = self._runner.input_batch
        if sampling_metadata is not batch.sampling_metadata:  # made up, to see how much memory it takes
            return super().forward(logits, sampling_metadata, predict_bonus_token, logprobs_mode_override)
        unsupported = [row for row, name in enumerate(batch.req_ids) if name in batch.thinking_token_budget_reqs]
        wants_logprobs = sampling_metadata.max_num_logprobs is not None or bool(sampling_metadata.logprob_token_ids)
        if grammar is not None and (unsupported or wants_logprobs):  # log-probabilities are of what the grammar allows
            grammar_mask.apply(logits, grammar)
        token = self._sample(logits, grammar).token.to(torch.int64)
        self._counts.add(Count.KERNELS, len(token) - len(unsupported))
        if unsupported:
            token[unsupported] = self._stock_tokens(logits, sampling_metadata)[unsupported]
            self._counts.add(Count.UNSUPPORTED, len(unsupported))
        return SamplerOutput(
            sampled_token_ids=token.to(torch.int32).unsqueeze(-1),
            logprobs_tensors=self._logprobs(logits, sampling_metadata, token) if wants_logprobs else None,
        )

    def _sample(self, logits: torch.Tensor, grammar: torch.Tensor | None) -> Sampled:
        runner = self._runner
        batch = runner.input_batch
        num_rows, num_tokens = logits.shape
        params = params_of(batch, self._seeds, runner.optimistic_seq_lens_cpu[:num_rows])
        edits = self._penalties.edits(batch, runner.requests, logits)
        sampled = cpu.sample(logits, params, mask_of(batch, grammar, num_tokens), edits)
        if sampled.status.any():
            self._counts.add(Count.NAN, int((sampled.status == Status.NAN).sum()))
            self._counts.add(Count.NOTHING, int((sampled.status == Status.NOTHING).sum()))
        return sampled

    def _stock_tokens(self, logits: torch.Tensor, metadata: SamplingMetadata) -> torch.Tensor:
        """int64 [N], by vLLM's own code."""
        bare = replace(metadata, max_num_logprobs=None, logprob_token_ids=None)
        return super().forward(logits.clone(), bare).sampled_token_ids.squeeze(-1).to(torch.int64)

    def _logprobs(
        self, logits: torch.Tensor, metadata: SamplingMetadata, token: torch.Tensor
    ) -> LogprobsTensors | None:
        if metadata.logprob_token_ids:
            every = Sampler.compute_logprobs(logits)
            return self.gather_specific_token_logprobs(every, metadata.logprob_token_ids, token)
        assert metadata.max_num_logprobs is not None
        return self.gather_logprobs(logits, metadata.max_num_logprobs, token)

    @staticmethod
    def compute_logprobs(logits: torch.Tensor) -> torch.Tensor:
        """The logits as they are: ``gather_logprobs`` needs no more, and no [N, V] is written. vLLM's runner calls the
        two one after the other for a prompt's logprobs."""
        return logits

    @staticmethod
    def gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        """See `Sampler.gather_logprobs`; ``logprobs`` are logits (``compute_logprobs``)."""
        if num_logprobs > MAX_LOGPROBS:
            return Sampler.gather_logprobs(Sampler.compute_logprobs(logprobs), num_logprobs, token_ids)
        found = kernel_logprobs(logprobs, token_ids.to(torch.int32), num_logprobs)
        return LogprobsTensors(found.ids, found.logprobs, found.rank)


class CountedSampler(Sampler):
    """vLLM's sampler as it is; what it does is counted. A sampler becomes one by its class."""

    counts: SamplingCounts
    count: Count

    def forward(self, logits: torch.Tensor, *args: Any, **kwargs: Any) -> SamplerOutput:
        """See `Sampler.forward`."""
        self.counts.add(self.count, len(logits))
        return super().forward(logits, *args, **kwargs)
