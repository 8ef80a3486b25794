"""The Triton kernels, on the GPU or in the interpreter, give what the float64 oracle and the CPU twin give."""

import dataclasses

import pytest
import torch

from kernels.sample import cpu, reference
from kernels.sample.op import sample
from kernels.sample.types import Edits, Params, Sampled, Status

MARGIN = 1e-6
"""As a share of the mass: what float32 weights may be off by."""

SETTINGS: list[dict[str, float]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.3},
    {"temperature": 1e-5},
    {"temperature": 100.0},
    {"top_k": 1},
    {"top_k": 5, "temperature": 0.7},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 700},
    {"top_k": 10**6, "top_p": 0.5},
    {"top_p": 1e-6},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 1e-4, "top_k": 20, "top_p": 0.8},
]


def params(settings: list[dict[str, float]], device: str, first_seed: int = 0) -> Params:
    """A row for each."""

    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([row.get(name, default) for row in settings], dtype=dtype, device=device)

    count = len(settings)
    return Params(
        temperature=column("temperature", 1.0, torch.float32),
        top_k=column("top_k", 0, torch.int32),
        top_p=column("top_p", 1.0, torch.float32),
        min_p=column("min_p", 0.0, torch.float32),
        seed=torch.arange(first_seed, first_seed + count, device=device) * 0x1234567890ABCDE - 5,
        position=torch.arange(count, device=device) * 2**31 + 3,
    )


def peaked(num_rows: int, num_tokens: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Like a language model's: Zipf's law over shuffled ids, some noise on it."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(num_rows)])
    noise = torch.randn(num_rows, num_tokens, generator=generator) / 2
    return (12 - 1.5 * torch.log(ranks + 2.0) + noise).to(dtype)


def flat(num_rows: int, num_tokens: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """An untrained model's: no filter but a small k leaves few candidates, so that rows are wide."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, num_tokens, generator=generator) / 2).to(dtype)


def assert_right(
    out: Sampled, logits: torch.Tensor, how: Params, mask: torch.Tensor | None = None, edits: Edits | None = None
) -> None:
    for n, verdict in enumerate(reference.verdicts(logits, how, mask, edits)):
        assert out.status[n] == verdict.status, n
        assert out.num_kept[n] == len(verdict.kept) or verdict.cut_margin < MARGIN, (n, verdict)
        assert out.token[n] == verdict.token or min(verdict.draw_margin, verdict.cut_margin) < MARGIN, (n, verdict)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 129, 1003])
def test_every_filter_at_every_size_of_vocabulary(num_tokens: int, dtype: torch.dtype, device: str) -> None:
    logits = peaked(len(SETTINGS), num_tokens, dtype, seed=num_tokens).to(device)
    how = params(SETTINGS, device, first_seed=num_tokens)
    assert_right(sample(logits, how), logits, how)


@pytest.mark.parametrize(
    ("rows", "dtype"), [(peaked, torch.bfloat16), (peaked, torch.float32), (flat, torch.bfloat16)], ids=str
)
def test_rows_of_many_candidates(rows: object, dtype: torch.dtype, device: str) -> None:
    logits = rows(len(SETTINGS), 2500, dtype).to(device)  # type: ignore[operator]
    how = params(SETTINGS, device)
    assert_right(sample(logits, how), logits, how)


def test_the_twin_on_the_cpu_keeps_and_draws_the_same(device: str) -> None:
    logits = torch.cat([peaked(len(SETTINGS), 1500, torch.bfloat16), flat(len(SETTINGS), 1500, torch.bfloat16)])
    how = params(SETTINGS * 2, device, first_seed=900)
    ours = sample(logits.to(device), how)
    twin = cpu.sample(logits, Params(*(getattr(how, name).cpu() for name in Params.__slots__)))
    for n, verdict in enumerate(reference.verdicts(logits, how)):
        if min(verdict.draw_margin, verdict.cut_margin) >= MARGIN:
            assert (ours.token[n], ours.num_kept[n], ours.status[n]) == (
                twin.token[n], twin.num_kept[n], twin.status[n]
            ), n  # fmt: skip


@pytest.mark.parametrize("shift", [0, 17])
def test_a_row_alone_in_a_batch_and_elsewhere_in_it_has_the_same_bits(shift: int, device: str) -> None:
    """Logprobs too: their last bit would show another order of additions."""
    logits = torch.cat([peaked(8, 1500, torch.bfloat16), flat(8, 1500, torch.bfloat16)]).to(device)
    how = params(SETTINGS, device)
    order = [(n + shift) % len(SETTINGS) for n in range(len(SETTINGS))]
    some = [2, 7, 12]
    batch = sample(logits[order], Params(*(getattr(how, name)[order] for name in Params.__slots__)), num_logprobs=3)
    for n in some:
        alone = sample(
            logits[n : n + 1], Params(*(getattr(how, name)[n : n + 1] for name in Params.__slots__)), num_logprobs=3
        )
        place = order.index(n)
        assert alone.token[0] == batch.token[place]
        assert alone.num_kept[0] == batch.num_kept[place]
        assert alone.logprobs is not None
        assert batch.logprobs is not None
        assert torch.equal(alone.logprobs.logprobs[0], batch.logprobs.logprobs[place])


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_ties_are_cut_by_id(value: float, device: str) -> None:
    settings: list[dict[str, float]] = [
        {"temperature": 0.0},
        {"top_k": 7},
        {"top_k": 200, "top_p": 0.5},
        {"top_p": 0.25},
        {"min_p": 1.0},
    ]
    logits = torch.full((len(settings), 1500), value, dtype=torch.bfloat16, device=device)
    how = params(settings, device)
    out = sample(logits, how)
    assert out.num_kept.tolist() == [1, 7, 100, 375, 1500]
    assert_right(out, logits, how)


def test_rows_that_no_model_should_give_are_answered_and_leave_their_neighbours_alone(device: str) -> None:
    settings: list[dict[str, float]] = [{"temperature": 0.0}, {}, {"top_k": 40, "top_p": 0.9}, {"top_p": 0.5}]
    inf, nan = float("inf"), float("nan")
    kinds = peaked(9, 1003, torch.float32)
    kinds[0, ::2] = nan
    kinds[1] = nan
    kinds[2, [5, 300, 999]] = inf
    kinds[3] = -inf
    kinds[4] = -inf
    kinds[4, 700] = -2.0
    kinds[5] = torch.linspace(-1e4, 1e4, 1003)
    kinds[6] = torch.where(torch.arange(1003) % 2 == 0, 0.0, -0.0)
    kinds[7, 10] = nan
    kinds[7, 11] = inf
    for how in (params([one] * len(kinds), device) for one in settings):
        logits = kinds.to(device)
        out = sample(logits, how)
        assert_right(out, logits, how)
        assert out.status.tolist() == [Status.NAN, Status.NOTHING, 0, Status.NOTHING, 0, 0, 0, Status.NAN, 0]


def test_a_mask_leaves_what_it_allows(device: str) -> None:
    """Dense, sparse, one token, and nothing allowed; NaN under the mask is no NaN."""
    logits = peaked(len(SETTINGS), 1003, torch.bfloat16)
    logits[:, 7] = float("nan")
    generator = torch.Generator().manual_seed(3)
    mask = torch.randint(-(2**31), 2**31, (len(SETTINGS), 32), generator=generator, dtype=torch.int64).to(torch.int32)
    mask[:, 0] &= ~(1 << 7)
    mask[4:8] = 0
    mask[4:8, 20] = 1 << 5
    mask[8:12, 3:29] = 0
    mask[12] = 0
    logits, mask, how = logits.to(device), mask.to(device), params(SETTINGS, device)
    out = sample(logits, how, mask)
    assert_right(out, logits, how, mask)
    assert out.status.tolist() == [0] * 12 + [Status.NOTHING] + [0] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_edits_stand_in_place_of_logits_and_the_mask_over_edits(dtype: torch.dtype, device: str) -> None:
    """An edit is not rounded to the logits' type."""
    logits = peaked(len(SETTINGS), 1003, dtype)
    generator = torch.Generator().manual_seed(5)
    sets = [torch.randperm(1003, generator=generator)[: 11 * n % 300].sort().values for n in range(len(SETTINGS))]
    ids = torch.cat(sets).to(torch.int32)
    offsets = torch.tensor([0, *(len(chosen) for chosen in sets)]).cumsum(0).to(torch.int32)
    values = torch.randn(len(ids), generator=generator) * 3 + 9
    values[::17] = float("-inf")
    mask = torch.full((len(SETTINGS), 32), -1, dtype=torch.int32)
    mask[::2, 8:20] = 0x0F0F00FF
    edits = Edits(offsets.to(device), ids.to(device), values.to(device))
    logits, mask, how = logits.to(device), mask.to(device), params(SETTINGS, device)
    assert_right(sample(logits, how, None, edits), logits, how, None, edits)
    assert_right(sample(logits, how, mask, edits), logits, how, mask, edits)


def test_rows_may_stand_apart(device: str) -> None:
    wide = peaked(4, 1200, torch.bfloat16).to(device)
    how = params(SETTINGS[6:10], device)
    part = wide[:, 32:1035]
    assert torch.equal(sample(part, how).token, sample(part.contiguous(), how).token)


def test_logprobs_are_of_the_raw_row(device: str) -> None:
    logits = peaked(len(SETTINGS), 1003, torch.bfloat16).to(device)
    how = params(SETTINGS, device)
    mask = torch.full((len(SETTINGS), 32), 0x55555555, dtype=torch.int32, device=device)
    out = sample(logits, how, mask, num_logprobs=5)
    wanted = reference.logprobs(logits, out.token, 5)
    assert out.logprobs is not None
    assert torch.equal(out.logprobs.ids.cpu(), wanted.ids)
    assert torch.equal(out.logprobs.rank.cpu(), wanted.rank)
    torch.testing.assert_close(out.logprobs.logprobs.cpu(), wanted.logprobs, atol=2e-6, rtol=1e-6)


def test_no_row_is_no_token(device: str) -> None:
    out = sample(torch.empty(0, 50, device=device), params([], device), num_logprobs=2)
    assert out.token.shape == (0,)
    assert out.logprobs is not None
    assert out.logprobs.ids.shape == (0, 3)


def test_what_is_not_as_the_contract_says_is_named(device: str) -> None:
    logits, how = peaked(2, 64, torch.float32).to(device), params(SETTINGS[:2], device)
    with pytest.raises(ValueError, match=r"seed: torch.int32 \(2,\), must be contiguous torch.int64"):
        sample(logits, dataclasses.replace(how, seed=how.seed.to(torch.int32)))
    with pytest.raises(ValueError, match=r"logits: torch\.float64"):
        sample(logits.double(), how)
    with pytest.raises(ValueError, match=r"mask: torch.int32 \(2, 3\)"):
        sample(logits, how, torch.zeros(2, 3, dtype=torch.int32, device=device))
