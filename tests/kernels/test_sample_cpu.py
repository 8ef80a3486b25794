"""The compiled sampler against the oracle: the same kept tokens, the same token, the same status."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sample import reference
from kernels.sample.cpu import sample
from kernels.sample.types import Edits, Params, Status
from tests.kernels.rows import flat, params, peaked, rows_of

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
PRECISION = 1e-6
"""Of float32 weights: as near to a bound, either side is right."""


def check(logits: torch.Tensor, chosen: Params, mask: torch.Tensor | None = None, edits: Edits | None = None) -> None:
    """All rows are as the oracle has them, but where it was a matter of rounding."""
    answer = sample(logits, chosen, mask, edits)
    for n, verdict in enumerate(reference.verdicts(logits, chosen, mask, edits)):
        row = f"row {n} of {tuple(logits.shape)}: {rows_of(chosen, [n])}"
        assert answer.status[n] == verdict.status, row
        if verdict.cut_margin > PRECISION:
            assert answer.num_kept[n] == len(verdict.kept), row
            if verdict.draw_margin > PRECISION:
                assert answer.token[n] == verdict.token, row
            else:
                assert len(verdict.kept) == 0 or answer.token[n] in verdict.kept, row


def settings_grid(num_tokens: int) -> Params:
    num_blocks = -(-num_tokens // 128)
    top_k = sorted({-1, 0, 1, 2, num_blocks - 1, num_blocks, num_blocks + 1, num_tokens - 1, num_tokens})
    grid = list(
        itertools.product((0.0, 1e-5, 0.01, 1.0, 100.0), top_k, (1e-6, 0.01, 0.9, 0.99, 0.9999, 1.0), (0.0, 0.05))
    )
    chosen = params(len(grid))
    for name, values in zip(("temperature", "top_k", "top_p", "min_p"), zip(*grid, strict=True), strict=True):
        getattr(chosen, name).copy_(torch.tensor(values))
    return chosen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 127, 128, 129, 1003])
def test_every_combination_of_settings_is_exact(num_tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    chosen = settings_grid(num_tokens)
    for rows in (peaked, flat):
        check(rows(1, num_tokens, generator, dtype).expand(len(chosen.seed), -1), chosen)


@pytest.mark.parametrize("num_tokens", [32003, 151936])
def test_whole_vocabularies_are_exact(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    grid = [(0, 0.9, 0.0), (50, 1.0, 0.0), (50, 0.9, 0.0), (0, 1.0, 0.05), (0, 1.0, 0.0), (2000, 0.99, 1e-4)]
    chosen = params(len(grid), temperature=0.8)
    for n, (top_k, top_p, min_p) in enumerate(grid):
        chosen.top_k[n], chosen.top_p[n], chosen.min_p[n] = top_k, top_p, min_p
    for rows, dtype in itertools.product((peaked, flat), (torch.bfloat16, torch.float32)):
        check(rows(len(grid), num_tokens, generator, dtype), chosen)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_row_any_settings_any_mask_any_edits(data: st.DataObject) -> None:
    num_tokens = data.draw(st.integers(1, 400))
    special = st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), 3e38, -3e38])
    level = st.one_of(st.integers(-6, 6).map(float), st.floats(-30, 30, width=16), special)
    palette = data.draw(st.lists(level, min_size=1, max_size=6))
    picks = torch.randint(len(palette), (1, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
    logits = torch.tensor(palette)[picks].to(data.draw(st.sampled_from(DTYPES)))
    chosen = params(
        first_seed=data.draw(st.integers(-(2**62), 2**62)),
        position=data.draw(st.integers(0, 2**40)),
        temperature=data.draw(st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0])),
        top_k=data.draw(st.integers(0, num_tokens + 2)),
        top_p=data.draw(st.sampled_from([1e-6, 0.3, 0.5, 0.9, 0.999, 1.0])),
        min_p=data.draw(st.sampled_from([0.0, 0.0, 0.03, 1.0])),
    )
    words = st.sampled_from([0, -1, 1, 0x0F0F0F0F, -(2**31)])
    mask = edits = None
    if data.draw(st.booleans()):
        count = -(-num_tokens // 32)
        mask = torch.tensor([data.draw(st.lists(words, min_size=count, max_size=count))], dtype=torch.int32)
    if data.draw(st.booleans()):
        ids = sorted(data.draw(st.sets(st.integers(0, num_tokens - 1), max_size=5)))
        edits = Edits(
            torch.tensor([0, len(ids)], dtype=torch.int32),
            torch.tensor(ids, dtype=torch.int32),
            torch.tensor([data.draw(level) for _ in ids], dtype=torch.float32),
        )
    check(logits, chosen, mask, edits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_may_lie_anywhere(dtype: torch.dtype) -> None:
    """Rows of a wider tensor, an odd number of elements apart, at an address that is no multiple of a vector."""
    generator = torch.Generator().manual_seed(0)
    wide = peaked(5, 1201, generator, dtype)
    check(wide[1:, 3:1136], params(4, top_k=20, top_p=0.9))


def test_ties_are_cut_at_the_lowest_ids() -> None:
    logits = torch.zeros(1, 4000, dtype=torch.bfloat16)
    for chosen, kept in [
        ({"top_k": 50}, 50),
        ({"top_p": 0.9}, 3600),
        ({"temperature": 0.0}, 1),
        ({"min_p": 0.5}, 4000),
    ]:
        drawn = params(200, **chosen)
        answer = sample(logits.expand(200, -1), drawn)
        assert set(answer.num_kept.tolist()) == {kept}
        assert answer.token.max() < kept


def test_a_greedy_tie_goes_to_the_lowest_id_and_both_zeros_are_one() -> None:
    logits = torch.full((1, 1000), -5.0)
    logits[0, 300], logits[0, 900] = -0.0, 0.0
    assert sample(logits, params(temperature=0.0)).token.item() == 300
    logits[0, 300], logits[0, 900] = 0.0, -0.0
    assert sample(logits, params(temperature=0.0)).token.item() == 300
    assert sample(logits, params(top_k=1)).token.item() == 300


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negative", [False, True])
def test_rows_that_hold_no_ordinary_number(dtype: torch.dtype, negative: bool) -> None:
    """NaN of either sign, infinities, nothing at all: defined, flagged, and no neighbour is touched."""
    inf, nan = float("inf"), -float("nan") if negative else float("nan")
    generator = torch.Generator().manual_seed(3)
    logits = flat(8, 1003, generator, dtype)
    logits[1, 700] = nan
    logits[2] = nan
    logits[3, [5, 900]] = inf
    logits[4] = -inf
    logits[5] = -inf
    logits[5, 1002] = -1e4
    logits[6] = torch.linspace(-1e4, 1e4, 1003)
    for chosen in (
        {},
        {"temperature": 0.0},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.1},
        {"top_k": 900, "top_p": 0.999},
    ):
        drawn = params(8, **chosen)
        check(logits, drawn)
        answer = sample(logits, drawn)
        assert answer.status.tolist() == [0, Status.NAN, Status.NOTHING, 0, Status.NOTHING, 0, 0, 0]
        assert answer.token[[2, 4]].tolist() == [0, 0]
        assert answer.token[3] in (5, 900)
        assert answer.token[5] == 1002


def test_a_mask_hides_what_it_forbids() -> None:
    """Blocks without an allowed token are not even read: what is NaN there is not seen."""
    logits = torch.zeros(2, 1000)
    logits[:, 500] = float("nan")
    mask = torch.zeros(2, 32, dtype=torch.int32)
    mask[0, 31] = 1 << 7
    answer = sample(logits, params(2), mask)
    assert answer.token.tolist() == [999, 0]
    assert answer.status.tolist() == [Status.OK, Status.NOTHING]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_and_edits_together(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = peaked(6, 1003, generator, dtype)
    mask = torch.randint(-(2**31), 2**31, (6, 32), generator=generator, dtype=torch.int64).to(torch.int32)
    mask[2] = -1
    mask[3, 2:30] = 0
    offsets = torch.tensor([0, 3, 3, 6, 9, 9, 10], dtype=torch.int32)
    ids = torch.tensor([0, 128, 1002, 7, 8, 900, 1, 2, 3, 1000], dtype=torch.int32)
    edits = Edits(offsets, ids, torch.linspace(20, -20, 10))
    for chosen in ({}, {"temperature": 0.0}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.01, "top_p": 0.95}):
        check(logits, params(6, **chosen), mask, edits)


def test_the_logits_are_left_as_they_were() -> None:
    logits = torch.randn(3, 777)
    before = logits.clone()
    edits = Edits(
        torch.tensor([0, 1, 1, 1], dtype=torch.int32), torch.tensor([5], dtype=torch.int32), torch.tensor([9.0])
    )
    sample(logits, params(3), torch.ones(3, 25, dtype=torch.int32), edits, num_logprobs=2)
    assert torch.equal(logits, before)


def test_no_rows_give_no_tokens() -> None:
    answer = sample(torch.empty(0, 1000, dtype=torch.bfloat16), params(0), num_logprobs=3)
    assert answer.token.shape == (0,)
    assert answer.logprobs is not None
    assert answer.logprobs.ids.shape == (0, 4)


def test_what_does_not_fit_is_refused() -> None:
    logits = torch.zeros(2, 100)
    far = Edits(torch.tensor([0, 1, 1], dtype=torch.int32), torch.tensor([100], dtype=torch.int32), torch.tensor([1.0]))
    short = Edits(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32), torch.tensor([1.0]))
    double = params(2)
    double.temperature.data = double.temperature.double()
    for arguments, reason in [
        ((logits.double(), params(2)), "float64"),
        ((logits.T, params(100)), "rows of"),
        ((logits, params(3)), "2 rows"),
        ((logits, double), "float32"),
        ((logits, params(2), torch.ones(2, 3, dtype=torch.int32)), "mask"),
        ((logits, params(2), None, far), "vocabulary of 100"),
        ((logits, params(2), None, short), "2 offsets"),
    ]:
        with pytest.raises(ValueError, match=reason):
            sample(*arguments)  # type: ignore[arg-type]
