"""Penalties and biases on the CPU, from what each request has seen: about 16 bytes a distinct token.

vLLM counts every token of every sequence again at each step, into int64 [num_seqs, V + 1]. Here a request's distinct
tokens are kept in ascending order, with their counts; a new token costs one binary search, a step reads only the logits
of tokens that a rule touches, and hands them to `sample` as `Edits`.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kernels.compiled import entry, inlined
from kernels.penalties.rules import Rules
from kernels.sample.blocks import logit_of
from kernels.sample.matrix import matrix_of
from kernels.sample.rows import Changes
from kernels.sample.types import Edits

NO_SLOT: Final = -1
"""Stands for the slot of a row without rules."""

_SMALLEST = 64


class Store(NamedTuple):
    """The distinct tokens of all slots. Slot s has entries ``start[s]`` to ``start[s] + length[s] - 1``."""

    ids: Any
    """int32, ascending within a slot."""
    counts: Any
    """int32, in the output."""
    in_prompt: Any
    """uint8."""
    bias: Any
    """float32."""
    start: Any
    length: Any
    capacity: Any
    """int64 [S], each."""
    rules: Any
    """float32 [S, 3]: repetition, frequency, presence."""


class Penalties:
    """The rules of requests and what they have seen, each under a slot of the caller's choosing."""

    def __init__(self, num_slots: int, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._free: dict[int, list[int]] = {}
        self._used = 0
        self._store = Store(
            ids=np.empty(0, np.int32),
            counts=np.empty(0, np.int32),
            in_prompt=np.empty(0, np.uint8),
            bias=np.empty(0, np.float32),
            start=np.zeros(num_slots, np.int64),
            length=np.zeros(num_slots, np.int64),
            capacity=np.zeros(num_slots, np.int64),
            rules=np.zeros((num_slots, 3), np.float32),
        )

    def add_request(self, slot: int, rules: Rules, prompt: Sequence[int], output: Sequence[int] = ()) -> None:
        """A request takes a slot that is free. ``output`` is what it has written already, after a preemption say.

        Raises:
            ValueError: a token is not in the vocabulary.
        """
        assert self._store.capacity[slot] == 0, f"slot {slot} is taken"
        prompt_ids = np.unique(np.asarray(prompt, np.int64)) if rules.repetition != 1.0 else np.empty(0, np.int64)
        output_ids, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
        bias_ids = np.array(sorted(rules.bias), np.int64)
        ids = np.unique(np.concatenate([prompt_ids, output_ids, bias_ids]))
        if len(ids) and not 0 <= ids[0] <= ids[-1] < self._num_tokens:
            raise ValueError(f"token ids from {ids[0]} to {ids[-1]} in a vocabulary of {self._num_tokens}")
        self._reserve(slot, len(ids) + 1)
        store = self._store
        here = slice(store.start[slot], store.start[slot] + len(ids))
        store.ids[here] = ids
        store.counts[here] = 0
        store.counts[here][np.searchsorted(ids, output_ids)] = counts
        store.in_prompt[here] = np.isin(ids, prompt_ids)
        store.bias[here] = 0.0
        store.bias[here][np.searchsorted(ids, bias_ids)] = [rules.bias[token] for token in bias_ids.tolist()]
        store.length[slot] = len(ids)
        store.rules[slot] = rules.repetition, rules.frequency, rules.presence

    def append(self, slots: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32]) -> None:
        """One more token of the output for each of the slots int64 [N]; `NO_SLOT` is passed over, and no other slot may
        be named twice.

        Raises:
            ValueError: a token is not in the vocabulary.
        """
        store = self._store
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < self._num_tokens):
            raise ValueError(f"a token is not in the vocabulary of {self._num_tokens}: {tokens.tolist()}")
        for slot in slots[(store.length[slots] == store.capacity[slots]) & (slots != NO_SLOT)]:
            self._reserve(slot, 2 * store.capacity[slot])
        append_rows(self._store, slots, tokens)

    def remove(self, slot: int) -> None:
        """The slot is free again; nothing happens if it was."""
        capacity = int(self._store.capacity[slot])
        if capacity:
            self._free.setdefault(capacity, []).append(int(self._store.start[slot]))
            self._store.length[slot] = self._store.capacity[slot] = 0

    def edits(self, logits: torch.Tensor, slots: npt.NDArray[np.int64]) -> Edits:
        """What the rules make of the rows of logits [N, V] whose requests are in ``slots`` int64 [N]."""
        store = self._store
        room = int(store.length[slots[slots != NO_SLOT]].sum())
        changes = Changes(np.zeros(len(slots) + 1, np.int32), np.empty(room, np.int32), np.empty(room, np.float32))
        count = edit_rows(matrix_of(logits), store, slots, changes)
        return Edits(
            *(torch.from_numpy(array) for array in (changes.offsets, changes.ids[:count], changes.logits[:count]))
        )

    def _reserve(self, slot: int, num_entries: int) -> None:
        """Moves the slot to where there is room for so many entries."""
        capacity = max(_SMALLEST, 1 << (int(num_entries) - 1).bit_length())
        free = self._free.get(capacity)
        start = free.pop() if free else self._claim(capacity)
        store = self._store
        old = slice(store.start[slot], store.start[slot] + store.length[slot])
        for entries in store[:4]:
            entries[start : start + store.length[slot]] = entries[old]
        if store.capacity[slot]:
            self._free.setdefault(int(store.capacity[slot]), []).append(int(store.start[slot]))
        store.start[slot], store.capacity[slot] = start, capacity

    def _claim(self, capacity: int) -> int:
        start, self._used = self._used, self._used + capacity
        if self._used > len(self._store.ids):
            size = max(self._used, 2 * len(self._store.ids))
            grown = {name: np.resize(getattr(self._store, name), size) for name in Store._fields[:4]}
            self._store = self._store._replace(**grown)
        return start


@entry
def append_rows(store: Any, slots: Any, tokens: Any) -> None:
    """There is room for one more entry in each slot."""
    for n in range(len(slots)):
        if slots[n] == NO_SLOT:
            continue
        first, last = store.start[slots[n]], store.start[slots[n]] + store.length[slots[n]]
        at = first + np.searchsorted(store.ids[first:last], tokens[n])
        if at == last or store.ids[at] != tokens[n]:
            for i in range(last, at, -1):
                store.ids[i], store.counts[i] = store.ids[i - 1], store.counts[i - 1]
                store.in_prompt[i], store.bias[i] = store.in_prompt[i - 1], store.bias[i - 1]
            store.ids[at], store.counts[at], store.in_prompt[at], store.bias[at] = tokens[n], 0, 0, 0.0
            store.length[slots[n]] += 1
        store.counts[at] += 1


@entry
def edit_rows(matrix: Any, store: Any, slots: Any, changes: Any) -> int:
    """Fills `Changes`; how many ids and logits there are."""
    count = 0
    for n in range(len(slots)):
        if slots[n] != NO_SLOT:
            rules = store.rules[slots[n]]
            for i in range(store.start[slots[n]], store.start[slots[n]] + store.length[slots[n]]):
                x = logit_of(matrix.kind, matrix.address + n * matrix.stride, store.ids[i])
                changes.ids[count] = store.ids[i]
                changes.logits[count] = _penalised(x, rules, store.counts[i], store.in_prompt[i], store.bias[i])
                count += 1
        changes.offsets[n + 1] = count
    return count


@inlined
def _penalised(x: Any, rules: Any, count: Any, in_prompt: Any, bias: Any) -> Any:
    """One logit, each step rounded to float32."""
    repetition, frequency, presence = rules[0], rules[1], rules[2]
    x = x + bias
    if in_prompt or count > 0:
        x = x * (np.float32(1.0) / repetition if x > np.float32(0.0) else repetition)
    if count > 0:
        x = x - frequency * np.float32(count)
        x = x - presence
    return x
