"""The index proposes what a rescan of the context proposes, whatever was appended, taken back or removed before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ngram_index import reference
from kernels.ngram_index.cpu import NgramIndex

NUM_DRAFTS = 4


def propose(index: NgramIndex, slot: int, tokens: list[int]) -> list[int]:
    one = np.zeros(1, np.int32)
    row = np.array([tokens], np.int32).reshape(1, len(tokens))
    return index.propose(one + slot, one, one + len(tokens), row).lists()[0]


contexts = st.lists(st.integers(0, 3), max_size=60)


@given(contexts, st.integers(1, 4), st.integers(0, 3), st.integers(1, 70))
def test_any_context_gets_the_draft_of_a_rescan(tokens: list[int], min_n: int, more: int, max_tokens: int) -> None:
    max_tokens = max(max_tokens, len(tokens), 1)
    index = NgramIndex(1, max_tokens, min_n, min_n + more, NUM_DRAFTS)
    assert propose(index, 0, tokens) == reference.propose(tokens, NUM_DRAFTS, min_n, min_n + more, max_tokens)


steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 12), st.lists(st.integers(0, 2), max_size=12)), min_size=1, max_size=20
)


@given(steps, st.booleans())
def test_slots_follow_their_requests_through_growth_rollback_and_removal(
    steps: list[tuple[int, int, list[int]]], crowded: bool
) -> None:
    """`crowded`: a table as small as it can be, so that entries collide and tables double."""
    index = NgramIndex(3, 400, 1, 3, NUM_DRAFTS, min_entries=4 if crowded else 1024)
    requests: list[list[int]] = [[], [], []]
    for slot, num_taken_back, new in steps:
        if num_taken_back == 12:
            index.remove(slot)
            requests[slot] = []
        kept = requests[slot][: max(len(requests[slot]) - num_taken_back, 0)]
        propose(index, slot, kept)
        requests[slot] = kept + new
        assert propose(index, slot, requests[slot]) == reference.propose(requests[slot], NUM_DRAFTS, 1, 3, 400)
        assert index.num_tokens(slot) == len(requests[slot])


def test_a_table_that_doubled_many_times_still_finds_the_first_occurrence() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 12, 6000).astype(np.int32)
    index = NgramIndex(1, 8192, 2, 5, NUM_DRAFTS)
    slot = np.zeros(1, np.int32)
    for length in range(1, 6001, 97):
        drafts = index.propose(slot, slot, np.array([length], np.int32), tokens[None]).lists()[0]
        assert drafts == reference.propose(tokens[:length].tolist(), NUM_DRAFTS, 2, 5, 8192)


def test_rows_may_stand_anywhere_and_only_new_tokens_are_read() -> None:
    index = NgramIndex(4, 16, 2, 3, NUM_DRAFTS)
    token_ids = np.zeros((3, 16), np.int32)
    token_ids[2, :6] = [5, 6, 7, 8, 5, 6]
    token_ids[0, :5] = [9, 9, 1, 9, 9]

    def both(lengths: list[int]) -> list[list[int]]:
        slots, rows = np.array([3, 1], np.int32), np.array([2, 0], np.int32)
        return index.propose(slots, rows, np.array(lengths, np.int32), token_ids).lists()

    assert both([6, 5]) == [[7, 8, 5, 6], [1, 9, 9]]
    token_ids[2, :6] = -7  # what was seen is not read again
    token_ids[2, 6] = 7
    assert both([7, 5]) == [[8, 5, 6, 7], [1, 9, 9]]


def test_no_draft_runs_past_the_longest_context_allowed() -> None:
    index = NgramIndex(1, 7, 1, 2, NUM_DRAFTS)
    assert propose(index, 0, [1, 2, 3, 1, 2]) == [3, 1]
    assert propose(index, 0, [1, 2, 3, 1, 2, 3, 1]) == []


@pytest.mark.parametrize(("min_n", "max_n"), [(0, 2), (3, 2)])
def test_lengths_that_make_no_sense_are_refused(min_n: int, max_n: int) -> None:
    with pytest.raises(ValueError, match="1 <= min_n <= max_n"):
        NgramIndex(1, 8, min_n, max_n, 1)


def test_sizes_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        NgramIndex(1, 8, 1, 1, 0)


def test_a_context_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="context of 9 tokens"):
        propose(NgramIndex(1, 8, 1, 1, 1), 0, [1] * 9)


def test_warming_up_leaves_the_index_empty() -> None:
    index = NgramIndex(2, 8, 1, 2, 1)
    index.warm_up()
    assert index.num_tokens(0) == index.num_tokens(1) == 0


@pytest.mark.engine
@settings(max_examples=300)
@given(contexts, st.integers(1, 4), st.integers(0, 3), st.integers(1, 70))
def test_any_context_gets_vllms_own_draft(tokens: list[int], min_n: int, more: int, max_tokens: int) -> None:
    from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens as vllm_propose

    max_tokens = max(max_tokens, len(tokens), 1)
    index = NgramIndex(1, max_tokens, min_n, min_n + more, NUM_DRAFTS)
    theirs = vllm_propose(np.array(tokens, np.int32), min_n, min_n + more, max_tokens, NUM_DRAFTS)
    assert propose(index, 0, tokens) == theirs.tolist()
