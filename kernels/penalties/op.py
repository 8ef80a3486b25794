"""Penalties and biases on a GPU, from what each request has seen: 13 bytes a distinct token, and only for requests with
rules. vLLM's runner V2 keeps int32 [max_num_seqs, V] for all: 622 MB at 1024 sequences of a 152k vocabulary.

A step appends the sampled tokens and writes the touched logits as `Edits`: two launches, no host wait, and no size that
depends on data. Slots have a fixed capacity, because a slot that grew would have to be moved by the host.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton

from kernels.penalties.kernel import append_kernel, edits_kernel
from kernels.penalties.rules import Rules
from kernels.sample.types import Edits

_SIZE = 1024


class GpuPenalties:
    """The rules of requests and what they have seen, each under a slot of the caller's choosing."""

    def __init__(self, num_slots: int, num_tokens: int, capacity: int, device: torch.device | str) -> None:
        """``capacity`` is the most distinct tokens that a request can have: at most the longest context, plus the
        tokens with a bias. What a request sees beyond that is not counted."""
        self._num_tokens = num_tokens
        self._capacity = capacity
        self._device = torch.device(device)
        self._ids, self._counts = (torch.zeros(num_slots, capacity, dtype=torch.int32, device=device) for _ in range(2))
        self._in_prompt = torch.zeros(num_slots, capacity, dtype=torch.uint8, device=device)
        self._bias = torch.zeros(num_slots, capacity, dtype=torch.float32, device=device)
        self._length = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self._rules = torch.zeros(num_slots, 3, dtype=torch.float32, device=device)

    def add_request(self, slot: int, rules: Rules, prompt: Sequence[int], output: Sequence[int] = ()) -> None:
        """A request takes a slot, whatever was there. ``output`` is what it has written already, after a preemption.

        Raises:
            ValueError: a token is not in the vocabulary, or there are more distinct ones than the capacity.
        """
        prompt_ids = np.unique(np.asarray(prompt, np.int64)) if rules.repetition != 1.0 else np.empty(0, np.int64)
        output_ids, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
        bias_ids = np.array(sorted(rules.bias), np.int64)
        ids = np.unique(np.concatenate([prompt_ids, output_ids, bias_ids]))
        if len(ids) and not 0 <= ids[0] <= ids[-1] < self._num_tokens:
            raise ValueError(f"token ids from {ids[0]} to {ids[-1]} in a vocabulary of {self._num_tokens}")
        if len(ids) > self._capacity:
            raise ValueError(f"{len(ids)} distinct tokens; a slot holds {self._capacity}")
        count = np.zeros(len(ids), np.int32)
        count[np.searchsorted(ids, output_ids)] = counts
        bias = np.zeros(len(ids), np.float32)
        bias[np.searchsorted(ids, bias_ids)] = [rules.bias[token] for token in bias_ids.tolist()]
        in_prompt = np.isin(ids, prompt_ids).astype(np.uint8)
        for state, column in (
            (self._ids, ids.astype(np.int32)), (self._counts, count), (self._in_prompt, in_prompt), (self._bias, bias)
        ):  # fmt: skip
            state[slot, : len(ids)] = torch.from_numpy(column).to(self._device)
        self._rules[slot] = torch.tensor([rules.repetition, rules.frequency, rules.presence], device=self._device)
        self._length[slot] = len(ids)

    def remove(self, slot: int) -> None:
        """The slot is free again."""
        self._length[slot] = 0

    def append(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """One more token of the output, int32 [N] in the vocabulary, for each of the slots int32 [N]; -1 is passed
        over, and no other slot may be named twice."""
        num_rows = slots.shape[0]
        if num_rows:
            append_kernel[(num_rows,)](
                slots, tokens, self._ids, self._counts, self._in_prompt, self._bias, self._length, self._capacity,
                SIZE=_SIZE, num_warps=4,
            )  # fmt: skip

    def edits(self, logits: torch.Tensor, slots: torch.Tensor) -> Edits:
        """What the rules make of the rows of logits [N, V] whose requests are in ``slots`` int32 [N]; -1: no rules. Ids
        and logits have room for full slots; the offsets say what is there."""
        num_rows = slots.shape[0]
        offsets = torch.zeros(num_rows + 1, dtype=torch.int32, device=self._device)
        ids = torch.empty(num_rows * self._capacity, dtype=torch.int32, device=self._device)
        values = torch.empty(num_rows * self._capacity, dtype=torch.float32, device=self._device)
        if num_rows:
            edits_kernel[(num_rows,)](
                logits, logits.stride(0), slots, self._ids, self._counts, self._in_prompt, self._bias, self._length,
                self._rules, offsets, ids, values, self._capacity, num_rows,
                N_PADDED=triton.next_power_of_2(num_rows), SIZE=_SIZE, num_warps=4,
            )  # fmt: skip
        return Edits(offsets, ids, values)
