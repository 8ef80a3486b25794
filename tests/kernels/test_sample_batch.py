"""A row's answer has the same bits whoever shares its batch, and its draws are distributed as they should be."""

import math
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kernels.sample import reference
from kernels.sample.cpu import sample
from kernels.sample.types import Edits, Params, Sampled
from tests.kernels.rows import flat, params, peaked, rows_of

NUM_TOKENS = 8192 + 77
MODES = {
    "temperature": {"temperature": 0.8},
    "top-k": {"top_k": 40},
    "top-p": {"top_p": 0.9},
    "top-k and top-p": {"top_k": 40, "top_p": 0.9},
    "min-p": {"min_p": 0.05},
}


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def mixed_batch(num_rows: int) -> tuple[torch.Tensor, Params, torch.Tensor, Edits]:
    """Rows of every kind: each mode and greedy, flat and peaked, masked and not, edited and not."""
    generator = torch.Generator().manual_seed(11)
    half = num_rows // 2
    logits = torch.cat([make(half, NUM_TOKENS, generator, torch.bfloat16) for make in (peaked, flat)])
    chosen = params(num_rows)
    for n, mode in zip(range(num_rows), [*MODES.values(), {"temperature": 0.0}] * num_rows, strict=False):
        for name, value in mode.items():
            getattr(chosen, name)[n] = value
    mask = torch.full((num_rows, -(-NUM_TOKENS // 32)), -1, dtype=torch.int32)
    mask[::3] = torch.randint(0, 2**31, mask[::3].shape, generator=generator, dtype=torch.int32)
    counts = torch.arange(num_rows) % 4
    offsets = torch.cat([torch.zeros(1), counts.cumsum(0)]).to(torch.int32)
    ids = torch.cat([torch.arange(int(count)) * 1000 + 64 for count in counts]).to(torch.int32)
    return logits, chosen, mask, Edits(offsets, ids, torch.full((len(ids),), 9.5))


def picked(batch: tuple[torch.Tensor, Params, torch.Tensor, Edits], indices: list[int]) -> Sampled:
    """The answer for some of the rows, in some order."""
    logits, chosen, mask, edits = batch
    parts = [slice(int(edits.offsets[n]), int(edits.offsets[n + 1])) for n in indices]
    offsets = torch.tensor([0, *(part.stop - part.start for part in parts)]).cumsum(0).to(torch.int32)
    some = Edits(
        offsets, torch.cat([edits.ids[part] for part in parts]), torch.cat([edits.logits[part] for part in parts])
    )
    return sample(logits[indices], rows_of(chosen, indices), mask[indices], some, num_logprobs=4)


def assert_same(whole: Sampled, some: Sampled, indices: list[int]) -> None:
    assert whole.logprobs is not None
    assert some.logprobs is not None
    for name in ("token", "num_kept", "status"):
        assert torch.equal(getattr(whole, name)[indices], getattr(some, name))
    for name in ("ids", "logprobs", "rank"):
        assert torch.equal(getattr(whole.logprobs, name)[indices], getattr(some.logprobs, name))


def test_a_row_has_one_answer_alone_and_in_any_batch_at_any_place() -> None:
    batch = mixed_batch(128)
    whole = picked(batch, list(range(128)))
    generator = torch.Generator().manual_seed(12)
    for size in (1, 1, 1, 7, 8, 9, 64, 128):
        indices = torch.randperm(128, generator=generator)[:size].tolist()
        assert_same(whole, picked(batch, indices), indices)


@pytest.mark.usefixtures("three_threads")
def test_the_number_of_threads_changes_nothing() -> None:
    batch = mixed_batch(128)
    indices = list(range(128))
    many = picked(batch, indices)
    torch.set_num_threads(1)
    assert_same(many, picked(batch, indices), indices)


@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_samples_as_well() -> None:
    """Its parent's threads are not there; it makes its own. (Torch's own threads do not survive a fork, so the child
    computes nothing with them.)"""
    logits, chosen, mask, edits = mixed_batch(128)
    expected = sample(logits, chosen, mask, edits).token.tolist()
    child = os.fork()
    if child == 0:
        os._exit(0 if sample(logits, chosen, mask, edits).token.tolist() == expected else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_numbers_are_those_of_the_reference() -> None:
    """With equal weights for 2**16 tokens the token is the number's leading 16 bits."""
    logits = torch.zeros(1, 2**16)
    chosen = params(64, first_seed=-32, position=2**35 + 1)
    tokens = sample(logits.expand(64, -1), chosen).token
    expected = [int(reference.uniform(seed, 2**35 + 1) * 2**16) for seed in range(-32, 32)]
    assert tokens.tolist() == expected


def chi_square_z(counts: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations above its mean the statistic is (Wilson and Hilferty, PNAS 1931)."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("rows", [peaked, flat], ids=["peaked", "flat"])
def test_draws_follow_the_distribution_and_never_leave_its_support(mode: dict[str, float], rows: object) -> None:
    """10**5 draws; refused below p = 1e-6, which is 4.75 standard deviations. Tokens expected fewer than ten times
    share a bin."""
    num_draws, num_tokens = 100_000, 1003
    logits = rows(1, num_tokens, torch.Generator().manual_seed(21), torch.bfloat16)  # type: ignore[operator]
    drawn = sample(logits.expand(num_draws, -1), params(num_draws, **mode)).token.numpy()
    verdict = reference.verdicts(logits, params(**mode))[0]
    x = logits[0].double().numpy()[verdict.kept]
    weights = np.exp((x - x.max()) / mode.get("temperature", 1.0))
    counts = np.bincount(drawn, minlength=num_tokens)
    assert counts[verdict.kept].sum() == num_draws
    expected, found = num_draws * weights / weights.sum(), counts[verdict.kept]
    common = expected >= 10
    if not common.all():
        expected = np.append(expected[common], expected[~common].sum())
        found = np.append(found[common], found[~common].sum())
    assert chi_square_z(found, expected) < 4.75
