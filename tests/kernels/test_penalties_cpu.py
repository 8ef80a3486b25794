"""Penalties and biases from sparse counts: what a dense computation gives, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.penalties.cpu import NO_SLOT, Penalties
from kernels.penalties.reference import penalised
from kernels.penalties.rules import Rules
from kernels.sample.reference import edited

NUM_TOKENS = 300
TOKENS = st.lists(st.integers(0, NUM_TOKENS - 1), max_size=150)
RULES = st.builds(
    Rules,
    repetition=st.sampled_from([1.0, 1.2, 0.7]),
    frequency=st.sampled_from([0.0, 0.3, -1.7]),
    presence=st.sampled_from([0.0, 0.6]),
    bias=st.dictionaries(st.integers(0, NUM_TOKENS - 1), st.sampled_from([-np.inf, -3.25, 100.0]), max_size=4),
)


def applied(penalties: Penalties, logits: torch.Tensor, slots: list[int]) -> torch.Tensor:
    return torch.from_numpy(edited(logits, edits=penalties.edits(logits, np.array(slots)))).float()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(RULES, TOKENS, TOKENS, TOKENS), min_size=1, max_size=4), st.sampled_from(["bfloat16", "float32"])
)
def test_edits_are_what_a_dense_computation_gives(
    requests: list[tuple[Rules, list[int], list[int], list[int]]], dtype: str
) -> None:
    """For requests that come with an output and go on writing, together."""
    penalties = Penalties(8, NUM_TOKENS)
    logits = torch.randn(len(requests), NUM_TOKENS, generator=torch.Generator().manual_seed(1)).to(
        getattr(torch, dtype)
    )
    slots = [7 - n for n in range(len(requests))]
    for slot, (rules, prompt, before, _) in zip(slots, requests, strict=True):
        penalties.add_request(slot, rules, prompt, before)
    for step in range(max(len(written) for *_, written in requests)):
        now = [
            (slot, request[3][step]) for slot, request in zip(slots, requests, strict=True) if step < len(request[3])
        ]
        penalties.append(np.array([slot for slot, _ in now]), np.array([token for _, token in now], np.int32))
    answer = applied(penalties, logits, slots)
    for n, (rules, prompt, before, written) in enumerate(requests):
        assert torch.equal(answer[n], penalised(logits[n], rules, prompt, before + written))


def test_a_slot_that_was_freed_remembers_nothing_and_its_room_is_used_again() -> None:
    penalties = Penalties(2, NUM_TOKENS)
    logits = torch.ones(2, NUM_TOKENS)
    for _ in range(3):
        penalties.add_request(0, Rules(presence=1.0), (), range(100))
        penalties.add_request(1, Rules(frequency=1.0), (), [5, 5])
        assert applied(penalties, logits, [0, 1])[:, 5].tolist() == [0.0, -1.0]
        penalties.remove(0)
        penalties.remove(0)
        penalties.remove(1)
    penalties.add_request(0, Rules(presence=1.0), ())
    assert torch.equal(applied(penalties, logits, [0, NO_SLOT]), logits)


def test_a_row_without_rules_has_no_edits() -> None:
    penalties = Penalties(2, NUM_TOKENS)
    penalties.add_request(1, Rules(presence=1.0), (), [3])
    penalties.append(np.array([NO_SLOT, 1]), np.array([9, 4], np.int32))
    edits = penalties.edits(torch.zeros(3, NUM_TOKENS), np.array([NO_SLOT, 1, NO_SLOT]))
    assert edits.offsets.tolist() == [0, 0, 2, 2]
    assert edits.ids.tolist() == [3, 4]
    assert edits.logits.tolist() == [-1.0, -1.0]


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    penalties = Penalties(1, NUM_TOKENS)
    with pytest.raises(ValueError, match="vocabulary of 300"):
        penalties.add_request(0, Rules(), (), [300])
    penalties.add_request(0, Rules(), ())
    with pytest.raises(ValueError, match="vocabulary of 300"):
        penalties.append(np.array([0]), np.array([-1], np.int32))
