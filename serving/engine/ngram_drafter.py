"""Drafts by prompt lookup for vLLM's V1 runner, from an index that follows each context instead of a rescan of it.

vLLM 0.29 reads the whole context of every request at every step; `kernels.ngram_index` reads what is new. The drafts
are the same. A draft is only proposed: vLLM's rejection sampler decides what becomes of it, so that a wrong one would
cost time and no more.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.spec_decode import ngram_proposer
from vllm.v1.spec_decode.ngram_proposer import NgramProposer

from kernels.ngram_index.cpu import Int32s, NgramIndex

_OF_STOCK = ("min_n", "max_n", "k", "max_model_len")
_OF_BATCH = ("req_ids", "max_num_reqs")


@dataclass(frozen=True, slots=True)
class _Seat:
    """Whose context a slot of the index holds."""

    slot: int
    prompt: Any

    def is_of(self, request: Any) -> bool:
        """Whether what was indexed is the beginning of this request's context: an id may come again with another
        request, and a session's next turn puts another prompt in place. Each has a list of its own."""
        return self.prompt is request.prompt_token_ids


class IndexedNgramProposer(NgramProposer):
    """In place of ``runner.drafter``, of which it takes over the settings."""

    def __init__(self, stock: NgramProposer, runner: Any) -> None:
        # Not the parent's: it makes buffers for the rescan.
        self.min_n, self.max_n, self.k, self.max_model_len = stock.min_n, stock.max_n, stock.k, stock.max_model_len
        self._runner = runner
        num_slots = runner.input_batch.max_num_reqs
        self._index = NgramIndex(num_slots, self.max_model_len, self.min_n, self.max_n, self.k)
        self._index.warm_up()
        self._free = list(range(num_slots))
        self._seats: dict[str, _Seat] = {}

    def propose(
        self,
        num_speculative_tokens: int,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: Int32s,
        token_ids_cpu: Int32s,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """See `NgramProposer.propose`: for each row of the batch at most ``num_speculative_tokens``, and none where
        no token was sampled or the context is full."""
        assert num_speculative_tokens <= self.k, (num_speculative_tokens, self.k)
        names = self._runner.input_batch.req_ids
        self._leave_all_but(names)
        rows = [
            row
            for row, sampled in enumerate(sampled_token_ids)
            if sampled and num_tokens_no_spec[row] < self.max_model_len
        ]
        slots = [self._slot_of(names[row]) for row in rows]
        found = self._index.propose(
            np.array(slots, np.int32), np.array(rows, np.int32), num_tokens_no_spec[rows], token_ids_cpu
        )
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        for row, draft in zip(rows, found.lists(), strict=True):
            drafts[row] = draft[:num_speculative_tokens]
        return drafts

    def _slot_of(self, name: str) -> int:
        request = self._runner.requests[name]
        seat = self._seats.get(name)
        if seat is not None and not seat.is_of(request):
            self._leave(name)
            seat = None
        if seat is None:
            seat = self._seats[name] = _Seat(self._free.pop(), request.prompt_token_ids)
        return seat.slot

    def _leave_all_but(self, names: list[str]) -> None:
        for name in self._seats.keys() - names:
            self._leave(name)

    def _leave(self, name: str) -> None:
        slot = self._seats.pop(name).slot
        self._index.remove(slot)
        self._free.append(slot)


def why_not(runner: Any) -> str | None:
    """What stands against the index in this engine; None: nothing."""
    missing = [f"drafter.{name}" for name in _OF_STOCK if not hasattr(runner.drafter, name)]
    missing += [f"input_batch.{name}" for name in _OF_BATCH if not hasattr(runner.input_batch, name)]
    missing += ["requests"] if not hasattr(runner, "requests") else []
    return f"vLLM's runner has no {', '.join(missing)}" if missing else None


def fault_found() -> str | None:
    """Which made-up contexts get another draft than by vLLM's own function; None: none."""
    min_n, max_n, max_tokens, num_drafts = 2, 4, 64, 3
    rescan = ngram_proposer._find_longest_matched_ngram_and_propose_tokens.py_func  # compiled it would take seconds
    index = NgramIndex(1, max_tokens, min_n, max_n, num_drafts)
    slot = np.zeros(1, np.int32)
    context = np.random.default_rng(1).integers(0, 3, (1, max_tokens), np.int32)
    wrong = []
    for num_tokens in (1, 5, 30, 22, 23, 60, 62, 63, 64):  # grown, and taken back once
        found = index.propose(slot, slot, np.array([num_tokens], np.int32), context).lists()[0]
        if found != rescan(context[0, :num_tokens], min_n, max_n, max_tokens, num_drafts).tolist():
            wrong.append(num_tokens)
    return f"the n-gram index fails its self-test on contexts of {wrong} tokens" if wrong else None
