"""vLLM's V2 sampler (GPU) with Ballast's kernels in it: what a row draws does not depend on the others.

Temperature, top-k, top-p, min-p, seeds and positions go to `kernels.sample`, penalties as sparse edits. Biases, allowed
ids, minimum lengths and bad words are set by vLLM's own kernels, for they are exact and of one row each; a grammar has
been applied before. Nothing here waits for the device.

vLLM's own code samples rows with a thinking budget, and with penalties where they are not sparse (`sparse_capacity`),
and every step that verifies drafts: its rejection sampler keeps the sampler that it was made with.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.penalties import use_penalty
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from kernels.logprobs.op import logprobs
from kernels.penalties.op import GpuPenalties
from kernels.penalties.rules import Rules
from kernels.sample.op import sample
from kernels.sample.types import Logprobs, Params, Status
from serving.engine.sampling_counts import Count, SamplingCounts

MAX_LOGPROBS = 20
"""More than this per token are vLLM's to sort."""
_SPARSE_BYTES, _DENSE_BYTES = 21, 4
"""A distinct token's entry and its edit; a token's count in vLLM's table."""
_STEPS_BETWEEN_TALLIES = 64

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int_]
Tokens = Mapping[str, tuple[Sequence[int], int]]
"""By request id, prompt and output so far, and how many of them are the prompt."""


def sparse_capacity(max_model_len: int, vocab_size: int) -> int | None:
    """Distinct tokens that a request's penalties must have room for; None: vLLM's dense counts are smaller."""
    capacity = min(max_model_len, vocab_size)
    return capacity if _SPARSE_BYTES * capacity < _DENSE_BYTES * vocab_size else None


class SparsePenalties:
    """In place of vLLM's ``PenaltiesState``, as far as the runner and the sampler look at it."""

    output_bin_counts = None
    """vLLM's ``post_update`` counts no tokens then: they are counted when they are sampled."""

    def __init__(self, states: Any, capacity: int) -> None:
        """``states`` is vLLM's ``RequestState``."""
        self.use_penalty: Bools = np.zeros(states.max_num_reqs, np.bool_)
        self._states = states
        self._tokens: Tokens = {}
        self._penalties = GpuPenalties(states.max_num_reqs, states.vocab_size, capacity, states.device)
        self._slot_of = torch.full((states.max_num_reqs,), -1, dtype=torch.int32, device=states.device)

    def hold_tokens(self, tokens: Tokens) -> None:
        """Of the requests about to be added."""
        self._tokens = tokens

    def add_request(self, slot: int, asked: Any) -> None:
        self.use_penalty[slot] = use_penalty(asked)
        self._slot_of[slot] = slot if self.use_penalty[slot] else -1
        if self.use_penalty[slot]:
            tokens, num_prompt = self._tokens[self._states.index_to_req_id[slot]]
            rules = Rules(asked.repetition_penalty, asked.frequency_penalty, asked.presence_penalty)
            self._penalties.add_request(slot, rules, tokens[:num_prompt], tokens[num_prompt:])

    def apply_staged_writes(self) -> None:
        """Nothing is staged."""

    def edits(self, logits: torch.Tensor, slots: torch.Tensor) -> Any:
        """Of rows of logits [N, V] whose requests are in ``slots`` [N]."""
        return self._penalties.edits(logits, self._slot_of[slots])

    def append(self, slots: torch.Tensor, tokens: torch.Tensor, num_sampled: torch.Tensor) -> None:
        """Tokens int32 [N] were sampled; where ``num_sampled`` [N] is 0 they are thrown away."""
        self._penalties.append(torch.where(num_sampled > 0, self._slot_of[slots], -1), tokens)

    def warm_up(self, logits: torch.Tensor) -> None:
        """Compiles what a batch of any size needs: Triton makes a kernel for each power of two that holds the rows, and
        another where 16 divides their number. ``logits`` [1, V]."""
        for padded in (2**exponent for exponent in range((len(self._slot_of) - 1).bit_length() + 1)):
            for num_rows in {padded, padded - 1 if padded > 2 else padded}:
                nobody = torch.full((num_rows,), -1, dtype=torch.int32, device=logits.device)
                self._penalties.edits(logits.expand(num_rows, -1), nobody)
                self._penalties.append(nobody, nobody)


class FaultTally:
    """Faulty rows, counted on the device and told to the host some steps later."""

    def __init__(self, counts: SamplingCounts, max_num_rows: int, device: torch.device) -> None:
        self._counts = counts
        self._ones = torch.ones(max_num_rows, dtype=torch.int64, device=device)
        self._tally = torch.zeros(len(Status), dtype=torch.int64, device=device)
        self._seen = torch.zeros(len(Status), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self._num_steps = 0
        self._is_under_way = False

    def add(self, status: torch.Tensor) -> None:
        """Of one step, uint8 [N]."""
        self._tally.scatter_add_(0, status.to(torch.int64), self._ones[: len(status)])
        if self._is_under_way and (self._copied is None or self._copied.query()):
            self._is_under_way = False
            self._counts.set(Count.NAN, int(self._seen[Status.NAN]))
            self._counts.set(Count.NOTHING, int(self._seen[Status.NOTHING]))
        self._num_steps += 1
        if self._num_steps % _STEPS_BETWEEN_TALLIES == 0 and not self._is_under_way:
            self._seen.copy_(self._tally, non_blocking=True)
            self._is_under_way = True
            if self._copied is not None:
                self._copied.record()


class GpuKernelSampler(Sampler):
    """In place of ``runner.sampler``, whose state it shares: vLLM's rejection sampler goes on reading it."""

    def __init__(self, stock: Sampler, counts: SamplingCounts, sparse: SparsePenalties | None) -> None:
        # Not the parent's: it would make the state, hundreds of megabytes, again.
        self.__dict__.update(vars(stock))
        self._counts = counts
        self._sparse = sparse
        if sparse is not None:
            self.penalties_state = sparse
        self._faults = FaultTally(counts, self.req_states.max_num_reqs, torch.device(self.req_states.device))

    def hold_tokens(self, tokens: Tokens) -> None:
        """See `SparsePenalties.hold_tokens`."""
        if self._sparse is not None:
            self._sparse.hold_tokens(tokens)

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> SamplerOutput:
        """See `Sampler.__call__`."""
        slots = input_batch.idx_mapping_np
        assert len(logits) == len(slots), (logits.shape, slots)  # drafts are the rejection sampler's
        unsupported = self._unsupported(slots)
        num_unsupported = int(unsupported.sum())
        self._counts.add(Count.UNSUPPORTED, num_unsupported)
        if num_unsupported == len(slots):
            return super().__call__(logits, input_batch)
        self._counts.add(Count.KERNELS, len(slots) - num_unsupported)
        num_nans = get_num_nans(logits) if self.compute_nans else None
        dims = self.get_logprobs_dims(slots)
        token, found = self._sample(logits, input_batch, dims)
        if num_unsupported:
            token = self._with_stock_tokens(token, unsupported, logits, input_batch)
            found = None
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            input_batch.seq_lens.new_ones(input_batch.num_reqs),
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self.req_states.prefill_len.gpu,
        )
        if self._sparse is not None and self._sparse.use_penalty[slots].any():
            self._sparse.append(input_batch.idx_mapping, token, num_sampled)
        sampled = token.to(torch.int64)
        return SamplerOutput(
            sampled_token_ids=sampled.view(-1, 1),
            logprobs_tensors=None if dims is None else self._logprobs(logits, input_batch, sampled, dims, found),
            num_nans=num_nans,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    def _unsupported(self, slots: Ints) -> Bools:
        """[N], of the rows that the kernels have no answer to."""
        found: Bools = np.zeros(len(slots), np.bool_)
        if self._sparse is None:
            found |= self.penalties_state.use_penalty[slots]
        if self.thinking_budget_state.enabled:
            found |= self.thinking_budget_state.use_thinking_budget[slots]
        return found

    def _sample(
        self, logits: torch.Tensor, batch: Any, dims: tuple[int, int] | None
    ) -> tuple[torch.Tensor, Logprobs | None]:
        """Tokens int32 [N]; and logprobs, where they are to be had of what the kernels read anyway."""
        edited = self._edited(logits, batch)
        edits = None
        if self._sparse is not None and self._sparse.use_penalty[batch.idx_mapping_np].any():
            edits = self._sparse.edits(edited, batch.idx_mapping)
        num_logprobs = None
        if dims is not None and edited is logits and dims[0] <= MAX_LOGPROBS and dims[1] == 0:
            num_logprobs = dims[0]
        found = sample(edited, self._params(batch), None, edits, num_logprobs)
        self._faults.add(found.status)
        return found.token, found.logprobs

    def _params(self, batch: Any) -> Params:
        states, slots = self.sampling_states, batch.idx_mapping
        top_k = states.top_k.gpu[slots]
        return Params(
            temperature=states.temperature.gpu[slots],
            top_k=torch.where(top_k < states.vocab_size, top_k, 0),
            top_p=states.top_p.gpu[slots],
            min_p=states.min_p.gpu[slots],
            seed=states.seeds.gpu[slots],
            position=batch.positions[batch.logits_indices] + 1,  # of the token to be drawn, as the CPU engine counts
        )

    def _edited(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        """With biases and bans; the logits themselves where no row has any. A ban is -inf, which no penalty changes,
        so that it does not matter that it comes before the penalties here."""
        slots = batch.idx_mapping_np
        has_bias = self.logit_bias_state.use_logit_bias[slots].any()
        if not has_bias and not self.bad_words_state.num_bad_words.np[slots].any():
            return logits
        edited = logits.to(torch.float32, copy=True)
        places = batch.logits_indices
        self.logit_bias_state.apply_logit_bias(edited, batch.expanded_idx_mapping, slots, batch.positions[places])
        self.bad_words_state.apply_bad_words(
            edited, batch.expanded_idx_mapping, slots, batch.input_ids[places], batch.expanded_local_pos
        )
        return edited

    def _with_stock_tokens(
        self, token: torch.Tensor, unsupported: Bools, logits: torch.Tensor, batch: Any
    ) -> torch.Tensor:
        """Tokens int32 [N], of those rows vLLM's."""
        places = batch.logits_indices
        stock, _ = self.sample(
            logits, batch.expanded_idx_mapping, batch.idx_mapping, batch.idx_mapping_np,
            batch.positions[places], batch.input_ids[places], batch.expanded_local_pos,
        )  # fmt: skip
        is_stock = torch.from_numpy(unsupported).to(token.device, non_blocking=True)
        return torch.where(is_stock, stock.to(torch.int32), token)

    def _logprobs(
        self, logits: torch.Tensor, batch: Any, sampled: torch.Tensor, dims: tuple[int, int], found: Logprobs | None
    ) -> LogprobsTensors:
        num_logprobs, num_named = dims
        if num_named or num_logprobs > MAX_LOGPROBS:
            return compute_topk_scores(
                logits, num_logprobs, sampled, None, logprob_token_ids_state=self.logprob_token_ids_state,
                expanded_idx_mapping=batch.expanded_idx_mapping, max_per_req_token_ids=num_named,
            )  # fmt: skip
        if found is None:
            found = logprobs(logits, sampled.to(torch.int32), num_logprobs)
        return LogprobsTensors(found.ids.to(torch.int64), found.logprobs, found.rank.to(torch.int64))


class CountedGpuSampler(Sampler):
    """vLLM's sampler as it is; what it does is counted. A sampler becomes one by its class."""

    counts: SamplingCounts

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> SamplerOutput:
        """See `Sampler.__call__`."""
        self.counts.add(Count.STOCK, len(logits))
        return super().__call__(logits, input_batch)


class CountedRejectionSampler(RejectionSampler):
    """The same of the sampler that verifies drafts: a step counts once for each request."""

    counts: SamplingCounts
    count: Count

    def __call__(self, logits: torch.Tensor, input_batch: Any, *rest: Any) -> SamplerOutput:
        """See `RejectionSampler.__call__`."""
        self.counts.add(self.count, input_batch.num_reqs)
        return super().__call__(logits, input_batch, *rest)
