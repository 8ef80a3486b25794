"""Prompt lookup from an index that grows with the context: O(new tokens) a step, where a rescan costs O(context).

For each length n of ``min_n`` to ``max_n`` a slot has an open-addressing table from an n-gram to the position of its
first occurrence's last token. Two facts keep it small and exact:

- The *first* occurrence wins (`reference.py`), so an entry is written once and never changed. The table holds positions
  only; whether an entry is the n-gram that was looked for is decided by comparing the tokens, not the hash.
- Entries come in the order of their positions. Taking back the newest tokens removes the newest entries, and an entry
  that is newer than all others can be emptied in place: no other was probed past it. No tombstones, no log.

A table begins small and doubles at half load, so that a slot costs memory for the tokens it has seen and not
for the longest context allowed (``np.empty`` reserves addresses; the kernel gives pages when they are written).

The CPU engine's proposer (`serving/engine/ngram_drafter.py`) gives a slot to each request that drafts and calls
`propose` once a step. Accepted and rejected drafts need no care: the runner's count is of accepted tokens only, and a
count below what a slot has seen takes tokens back.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.compiled import entry, inlined

Int32s = npt.NDArray[np.int32]

_EMPTY = np.int32(-1)


@dataclass(frozen=True, slots=True)
class Drafts:
    """What is proposed for each row asked for."""

    tokens: Int32s
    """[R, num_drafts]; what lies past a row's count has no meaning. Overwritten by the next call."""
    counts: Int32s
    """[R]."""

    def lists(self) -> list[list[int]]:
        """As vLLM takes them."""
        return [row[:count] for row, count in zip(self.tokens.tolist(), self.counts.tolist(), strict=True)]


class NgramIndex:
    """The contexts of ``num_slots`` requests, each at most ``max_tokens`` long (prompt and output)."""

    def __init__(
        self, num_slots: int, max_tokens: int, min_n: int, max_n: int, num_drafts: int, *, min_entries: int = 1024
    ) -> None:
        """``min_entries`` is the size of an empty slot's table, a power of two.

        Raises:
            ValueError: a size that allows nothing.
        """
        if not 1 <= min_n <= max_n:
            raise ValueError(f"n-grams of {min_n} to {max_n} tokens: must be 1 <= min_n <= max_n")
        if num_slots < 1 or max_tokens < 1 or num_drafts < 1:
            raise ValueError(f"{num_slots=}, {max_tokens=} and {num_drafts=} must each be at least 1")
        assert min_entries.bit_count() == 1, min_entries
        max_entries = min_entries
        while max_entries < 2 * max_tokens:
            max_entries *= 2
        self._min_n = min_n
        self._max_n = max_n
        self._max_tokens = max_tokens
        self._min_entries = min_entries
        self._contexts = np.empty((num_slots, max_tokens), np.int32)
        self._tables = np.empty((num_slots, max_n - min_n + 1, max_entries), np.int32)
        self._num_tokens = np.zeros(num_slots, np.int32)
        self._num_entries = np.zeros(num_slots, np.int32)
        self._drafts = np.empty((num_slots, num_drafts), np.int32)
        self._counts = np.empty(num_slots, np.int32)

    def num_tokens(self, slot: int) -> int:
        """How many tokens of the request in ``slot`` are indexed."""
        return int(self._num_tokens[slot])

    def remove(self, slot: int) -> None:
        """Forget the request in ``slot``; the next one starts empty there. O(1)."""
        self._num_tokens[slot] = 0
        self._num_entries[slot] = 0

    def propose(self, slots: Int32s, rows: Int32s, num_tokens: Int32s, token_ids: Int32s) -> Drafts:
        """Bring each slot up to its row's context, then look its suffix up.

        Args:
            slots: [R], no slot twice.
            rows: [R], which row of ``token_ids`` is whose context.
            num_tokens: [R] tokens of each context; fewer than the slot has seen takes the newest back.
            token_ids: [any, at least max(num_tokens)]. Only tokens that the slot has not seen are read.

        Raises:
            ValueError: a context is longer than ``max_tokens`` or than its row.
        """
        longest = int(num_tokens.max(initial=0))
        if longest > min(self._max_tokens, token_ids.shape[1]):
            limit = f"at most {self._max_tokens} and a row of {token_ids.shape[1]}"
            raise ValueError(f"context of {longest} tokens; {limit}")
        _propose(
            slots, rows, num_tokens, token_ids, self._min_n, self._max_n, self._max_tokens, self._min_entries,
            self._contexts, self._tables, self._num_tokens, self._num_entries, self._drafts, self._counts,
        )  # fmt: skip
        return Drafts(self._drafts[: len(slots)], self._counts[: len(slots)])

    def warm_up(self) -> None:
        """Compile, or load from numba's cache, what a step runs. Leaves the index as it was."""
        none = np.empty(0, np.int32)
        self.propose(none, none, none, np.empty((0, 0), np.int32))


@entry
def _propose(
    slots: Int32s, rows: Int32s, num_tokens: Int32s, token_ids: Int32s,
    min_n: int, max_n: int, max_tokens: int, min_entries: int,
    contexts: Int32s, tables: Int32s, seen: Int32s, num_entries: Int32s, drafts: Int32s, counts: Int32s,
) -> None:  # fmt: skip
    for r in range(slots.size):
        slot = slots[r]
        context, table = contexts[slot], tables[slot]
        tokens = token_ids[rows[r], : num_tokens[r]]
        wanted = max(num_entries[slot], min_entries)
        while wanted < 2 * tokens.size:
            wanted *= 2
        _follow(context, table, seen[slot], num_entries[slot], tokens, wanted, min_n, max_n)
        seen[slot], num_entries[slot] = tokens.size, wanted
        context = context[: seen[slot]]
        start = _find(context, table, num_entries[slot], min_n, max_n)
        count = max(0, min(drafts.shape[1], context.size - start, max_tokens - context.size))
        drafts[r, :count] = context[start : start + count]
        counts[r] = count


@inlined
def _follow(
    context: Int32s, table: Int32s, seen: int, num_entries: int, tokens: Int32s, wanted: int, min_n: int, max_n: int
) -> None:
    """Take back what the slot has seen too much of, and index what it has not in a table of ``wanted`` entries."""
    for end in range(seen - 1, tokens.size - 1, -1):
        _take_back(context, table, num_entries, end, min_n, max_n)
    seen = min(seen, tokens.size)
    context[seen : tokens.size] = tokens[seen:]
    if wanted != num_entries:
        table[:, :wanted] = _EMPTY
        seen = 0
    for end in range(seen, tokens.size):
        _insert(context, table, wanted, end, min_n, max_n)


@inlined
def _find(context: Int32s, table: Int32s, num_entries: int, min_n: int, max_n: int) -> int:
    """Where the first continuation of the longest indexed suffix starts; the context's size if there is none."""
    end = context.size - 1
    start = context.size
    hashed = np.uint64(0)
    for n in range(1, min(max_n, context.size) + 1):
        hashed = _hash(hashed, context[end - n + 1])
        if n >= min_n:
            first = table[n - min_n, _entry_of(context, table[n - min_n], num_entries, end, n, hashed)]
            if first == end:
                break  # a longer one that stood earlier would have this one inside
            start = first + 1
    return start


@inlined
def _insert(context: Int32s, table: Int32s, num_entries: int, end: int, min_n: int, max_n: int) -> None:
    hashed = np.uint64(0)
    for n in range(1, min(max_n, end + 1) + 1):
        hashed = _hash(hashed, context[end - n + 1])
        if n >= min_n:
            entry = _entry_of(context, table[n - min_n], num_entries, end, n, hashed)
            if table[n - min_n, entry] == _EMPTY:
                table[n - min_n, entry] = end


@inlined
def _take_back(context: Int32s, table: Int32s, num_entries: int, end: int, min_n: int, max_n: int) -> None:
    """Remove the entries of the newest token, ``context[end]``."""
    hashed = np.uint64(0)
    for n in range(1, min(max_n, end + 1) + 1):
        hashed = _hash(hashed, context[end - n + 1])
        if n >= min_n:
            entry = _entry_of(context, table[n - min_n], num_entries, end, n, hashed)
            if table[n - min_n, entry] == end:
                table[n - min_n, entry] = _EMPTY


@inlined
def _entry_of(context: Int32s, entries: Int32s, num_entries: int, end: int, n: int, hashed: np.uint64) -> np.int64:
    """The entry of the n-gram that ends at ``end``, or the empty one where it belongs (linear probing)."""
    entry = np.int64(hashed >> np.uint64(32)) & (num_entries - 1)
    while entries[entry] != _EMPTY:
        first = entries[entry]
        same = True
        for i in range(n):
            if context[first - i] != context[end - i]:
                same = False
                break
        if same:
            break
        entry = (entry + 1) & (num_entries - 1)
    return entry


@inlined
def _hash(hashed: np.uint64, token: int) -> np.uint64:
    """One more token: the structure of FNV-1a with a multiplier and a shift of MurmurHash3's finaliser."""
    hashed = (hashed ^ np.uint64(token)) * np.uint64(0xFF51AFD7ED558CCD)
    return hashed ^ (hashed >> np.uint64(33))
