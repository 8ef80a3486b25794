"""Penalties by the Triton kernels make of a row what the dense reference makes of it."""

import pytest
import torch

from kernels.penalties import reference
from kernels.penalties.op import GpuPenalties
from kernels.penalties.rules import Rules
from kernels.sample.reference import edited

NUM_TOKENS = 700
RULES = [
    Rules(repetition=1.3, frequency=0.4, presence=0.2),
    Rules(frequency=-0.5, bias={0: 4.0, 699: float("-inf"), 31: -1.5}),
    Rules(repetition=0.8, bias={5: 2.0}),
    Rules(presence=1.5),
]


def test_after_any_outputs_rows_are_as_the_dense_rules_make_them(device: str) -> None:
    """Slots are not rows; one row has no rules; a slot is used again."""
    generator = torch.Generator().manual_seed(4)
    penalties = GpuPenalties(9, NUM_TOKENS, 300, device)
    slots = [6, 2, 0, 8]
    prompts = [torch.randint(0, NUM_TOKENS, (40,), generator=generator).tolist() for _ in RULES]
    outputs: list[list[int]] = [[3, 3, 650], [], [5], []]
    penalties.add_request(2, RULES[0], [1, 2, 3])
    penalties.remove(2)
    for slot, rules, prompt, output in zip(slots, RULES, prompts, outputs, strict=True):
        penalties.add_request(slot, rules, prompt, output)
    rows = torch.tensor([*slots[:2], -1, *slots[2:]], dtype=torch.int32, device=device)
    for _ in range(25):
        tokens = torch.randint(0, 60, (5,), generator=generator, dtype=torch.int32) * 11
        penalties.append(rows, tokens.to(device))
        for output, token in zip(outputs, tokens[[0, 1, 3, 4]].tolist(), strict=True):
            output.append(token)
    logits = (torch.randn(5, NUM_TOKENS, generator=generator) * 4).to(torch.bfloat16)
    got = torch.from_numpy(edited(logits, None, penalties.edits(logits.to(device), rows))).float()
    assert torch.equal(got[2], logits[2].float())
    for row, rules, prompt, output in zip([0, 1, 3, 4], RULES, prompts, outputs, strict=True):
        wanted = reference.penalised(logits[row], rules, prompt, output)
        torch.testing.assert_close(got[row], wanted, rtol=1e-6, atol=1e-6)


def test_a_token_moves_in_before_more_than_one_read_of_others(device: str) -> None:
    penalties = GpuPenalties(1, 5000, 3000, device)
    penalties.add_request(0, Rules(frequency=1.0), [], range(10, 4010, 2))
    slot = torch.zeros(1, dtype=torch.int32, device=device)
    for token in (3, 4001, 2001, 4999, 3):
        penalties.append(slot, torch.tensor([token], dtype=torch.int32, device=device))
    edits = penalties.edits(torch.zeros(1, 5000, device=device), slot)
    wanted = torch.zeros(5000)
    wanted[10:4010:2] = -1.0
    wanted[[4001, 2001, 4999]] = -1.0
    wanted[3] = -2.0
    assert edits.offsets.tolist() == [0, 2004]
    assert torch.equal(edits.ids[:2004].cpu(), wanted.nonzero()[:, 0].to(torch.int32))
    assert torch.equal(edits.logits[:2004].cpu(), wanted[wanted != 0])


def test_a_full_slot_counts_what_it_knows_and_nothing_new(device: str) -> None:
    penalties = GpuPenalties(1, 50, 2, device)
    penalties.add_request(0, Rules(presence=1.0), [], [7, 9])
    slot = torch.zeros(1, dtype=torch.int32, device=device)
    for token in (8, 9):
        penalties.append(slot, torch.tensor([token], dtype=torch.int32, device=device))
    edits = penalties.edits(torch.zeros(1, 50, device=device), slot)
    assert edits.ids[: edits.offsets[1]].tolist() == [7, 9]


def test_tokens_that_do_not_exist_or_fit_are_refused(device: str) -> None:
    penalties = GpuPenalties(1, 50, 2, device)
    with pytest.raises(ValueError, match="token ids from 50 to 50 in a vocabulary of 50"):
        penalties.add_request(0, Rules(presence=1.0), [], [50])
    with pytest.raises(ValueError, match="3 distinct tokens; a slot holds 2"):
        penalties.add_request(0, Rules(presence=1.0), [], [1, 2, 3])
