"""What the requests of vLLM's running batch ask of the sampler, read from its `InputBatch` (vLLM 0.29, V1) row by row.

Temperature, top-k, top-p and min-p are there as arrays. The rest becomes what `kernels.sample` takes: penalties and
biases are `Edits`; bad words, allowed ids, minimum lengths and grammars are bits of a mask.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)

from kernels.penalties.cpu import NO_SLOT, Penalties
from kernels.penalties.rules import Rules
from kernels.sample.types import Edits, Params

PROCESSORS = (MinPLogitsProcessor, LogitBiasLogitsProcessor, MinTokensLogitsProcessor)
"""The logits processors whose effect is expressed here. An engine with others keeps vLLM's sampler."""


class Seeds:
    """The seed of each row: the request's own, or one drawn when it is first seen."""

    def __init__(self, max_num_reqs: int, rng: random.Random | None = None) -> None:
        self._max_known = 4 * max_num_reqs
        self._rng = rng or random.SystemRandom()
        self._drawn: dict[str, int] = {}

    def of(self, batch: Any) -> torch.Tensor:
        """int64 [N]."""
        generators = batch.generators
        if len(self._drawn) > self._max_known:
            self._drawn = {name: seed for name, seed in self._drawn.items() if name in batch.req_id_to_index}
        return torch.tensor(
            [
                _as_int64(generators[row].initial_seed()) if row in generators else self._drawn_for(name)
                for row, name in enumerate(batch.req_ids)
            ],
            dtype=torch.int64,
        )

    def _drawn_for(self, name: str) -> int:
        seed = self._drawn.get(name)
        if seed is None:
            seed = self._drawn[name] = self._rng.getrandbits(63)
        return seed


def _as_int64(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


def params_of(batch: Any, seeds: Seeds, sequence_lengths: torch.Tensor) -> Params:
    """Of all rows. ``sequence_lengths`` [N] count the tokens up to the one to be drawn: they are its position."""
    num_rows = batch.num_reqs
    top_k = batch.top_k_cpu_tensor[:num_rows]
    min_p = _processor(batch, MinPLogitsProcessor)
    return Params(
        temperature=batch.temperature_cpu_tensor[:num_rows],
        top_k=torch.where(top_k < batch.vocab_size, top_k, 0) if batch.top_k_reqs else torch.zeros_like(top_k),
        top_p=batch.top_p_cpu_tensor[:num_rows],
        min_p=min_p.min_p_cpu_tensor[:num_rows] if min_p is not None else torch.zeros(num_rows),
        seed=seeds.of(batch),
        position=sequence_lengths.to(torch.int64),
    )


class PenaltyRows:
    """Keeps `Penalties` in step with the batch: a slot for each request that has any."""

    def __init__(self, max_num_reqs: int, num_tokens: int) -> None:
        self._penalties = Penalties(max_num_reqs, num_tokens)
        self._free = list(range(max_num_reqs))
        self._slots: dict[str, int] = {}
        self._num_seen: dict[str, int] = {}

    def edits(self, batch: Any, requests: Mapping[str, Any], logits: torch.Tensor) -> Edits | None:
        """None: no row has any. ``requests`` are the runner's, by id; ``logits`` [N, V] are the raw ones."""
        bias = _processor(batch, LogitBiasLogitsProcessor)
        biases = bias.biases if bias is not None else {}
        self._forget_all_but(batch.req_id_to_index)
        if batch.no_penalties and not biases:
            return None
        slots = np.full(batch.num_reqs, NO_SLOT, np.int64)
        fresh_slots: list[int] = []
        fresh_tokens: list[int] = []
        for row, name in enumerate(batch.req_ids):
            if row in biases or _is_penalised(batch, name):
                slots[row] = self._slot_of(name, requests[name], fresh_slots, fresh_tokens)
        if fresh_slots:
            self._penalties.append(np.array(fresh_slots, np.int64), np.array(fresh_tokens, np.int32))
        return self._penalties.edits(logits, slots)

    def _slot_of(self, name: str, request: Any, fresh_slots: list[int], fresh_tokens: list[int]) -> int:
        output: list[int] = request.output_token_ids
        num_seen = self._num_seen.get(name)
        if num_seen is not None and len(output) - num_seen in (0, 1):
            slot = self._slots[name]
            if len(output) > num_seen:
                fresh_slots.append(slot)
                fresh_tokens.append(output[-1])
        else:
            if num_seen is not None:
                self._forget(name)
            slot = self._slots[name] = self._free.pop()
            self._penalties.add_request(
                slot, _rules_of(request.sampling_params), request.prompt_token_ids or (), output
            )
        self._num_seen[name] = len(output)
        return slot

    def _forget_all_but(self, names: Mapping[str, int]) -> None:
        for name in [name for name in self._slots if name not in names]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        slot = self._slots.pop(name)
        self._penalties.remove(slot)
        self._free.append(slot)
        del self._num_seen[name]


def _is_penalised(batch: Any, name: str) -> bool:
    return (
        name in batch.repetition_penalties_reqs
        or name in batch.frequency_penalties_reqs
        or name in batch.presence_penalties_reqs
    )


def _rules_of(asked: Any) -> Rules:
    bias = {int(token): float(value) for token, value in (asked.logit_bias or {}).items()}
    return Rules(asked.repetition_penalty, asked.frequency_penalty, asked.presence_penalty, bias)


def mask_of(batch: Any, grammar: torch.Tensor | None, num_tokens: int) -> torch.Tensor | None:
    """int32 [N, ceil(V / 32)]: what the rows may choose; None: all may choose anything. ``grammar`` is such a mask too,
    and is changed."""
    min_tokens = _processor(batch, MinTokensLogitsProcessor)
    short = min_tokens.min_toks if min_tokens is not None else {}
    if not (batch.has_allowed_token_ids or batch.bad_words_token_ids or short):
        return grammar
    num_words = -(-num_tokens // 32)
    mask = torch.full((batch.num_reqs, num_words), -1, dtype=torch.int32) if grammar is None else grammar
    rows = mask.numpy()
    for name in batch.has_allowed_token_ids:
        row = batch.req_id_to_index[name]
        rows[row] &= _bits_of(batch.allowed_token_ids_mask_cpu_tensor[row].numpy(), num_words)
    for row, words in batch.bad_words_token_ids.items():
        output = batch.req_output_token_ids[row]
        _clear(rows[row], [word[-1] for word in words if _is_begun(word, output)])
    for row, (_, _, stop_ids, has_grammar) in short.items():
        before = rows[row].copy()
        _clear(rows[row], stop_ids)
        if has_grammar and not rows[row].any():
            rows[row] = before  # its grammar allows nothing but an end
    return mask


def _bits_of(is_forbidden: npt.NDArray[np.bool_], num_words: int) -> npt.NDArray[np.int32]:
    bits = np.packbits(~is_forbidden, bitorder="little")
    return np.pad(bits, (0, 4 * num_words - len(bits))).view(np.int32)


def _is_begun(word: Sequence[int], output: Sequence[int]) -> bool:
    """Whether the next token could be the last of ``word``."""
    begun = list(word[:-1])
    return not begun or list(output[-len(begun) :]) == begun


def _clear(words: npt.NDArray[np.int32], ids: Any) -> None:
    bits = words.view(np.uint32)
    for token in ids:
        if token < 32 * len(bits):
            bits[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)


def grammar_mask_of(batch: Any, grammar_output: Any, num_tokens: int) -> torch.Tensor:
    """int32 [N, ceil(V / 32)] in the order of the batch, from what the scheduler sends in its own order."""
    bits = grammar_output.grammar_bitmask
    num_words = -(-num_tokens // 32)
    mask = np.full((batch.num_reqs, num_words), -1, np.int32)
    width = min(num_words, bits.shape[1])
    for index, name in enumerate(grammar_output.structured_output_request_ids):
        row = batch.req_id_to_index.get(name)
        if row is not None:
            mask[row, :width] = bits[index, :width]
    return torch.from_numpy(mask)


def _processor(batch: Any, kind: type) -> Any | None:
    return next((processor for processor in batch.logitsprocs.all if type(processor) is kind), None)
