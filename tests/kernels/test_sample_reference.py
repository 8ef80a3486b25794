"""The oracle that every sampling kernel is held to."""

import numpy as np
import pytest
import torch

from kernels.logprobs.reference import logprobs
from kernels.sample.reference import edited, judge, philox, sample, uniform
from kernels.sample.types import Edits, Params, Status

ROW = np.log([0.1, 0.4, 0.2, 0.2, 0.1])
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_words_are_those_of_random123(
    key: tuple[int, int], counter: tuple[int, ...], words: tuple[int, ...]
) -> None:
    """Known answers from Random123's `kat_vectors`, "philox 4x32 10"."""
    assert philox(key, counter) == words  # type: ignore[arg-type]


def test_negative_seeds_and_distant_positions_have_numbers_of_their_own() -> None:
    numbers = {uniform(seed, position) for seed in (-1, 0, 1, 2**40) for position in (0, 1, 2**33)}
    assert len(numbers) == 12
    assert all(0 <= number < 1 for number in numbers)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 2]),
        ({"top_k": 4}, [0, 1, 2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.3}, [1]),
        ({"top_p": 0.5}, [1, 2]),
        ({"top_p": 0.85}, [0, 1, 2, 3]),
        ({"top_k": 3, "top_p": 0.7}, [1, 2]),
        ({"min_p": 0.4}, [1, 2, 3]),
        ({"min_p": 1.0}, [1]),
        ({"temperature": 0.0}, [1]),
    ],
)
def test_what_is_kept(settings: dict[str, float], kept: list[int]) -> None:
    assert judge(ROW, u=0.5, **OFF | settings).kept.tolist() == kept  # type: ignore[arg-type]


def test_the_draw_walks_the_kept_ids_in_ascending_order() -> None:
    tokens = [judge(ROW, u=u, **OFF | {"top_k": 3}).token for u in (0.0, 0.499, 0.501, 0.749, 0.751, 0.999)]  # type: ignore[arg-type]
    assert tokens == [1, 1, 2, 2, 3, 3]


def test_rows_that_hold_no_ordinary_number() -> None:
    inf, nan = np.inf, np.nan
    settings = OFF | {"u": 0.9}
    assert judge(np.array([nan, 1.0, -inf]), **settings).kept.tolist() == [1]  # type: ignore[arg-type]
    assert judge(np.array([nan, 1.0, -inf]), **settings).status == Status.NAN  # type: ignore[arg-type]
    assert judge(np.array([inf, 1.0, inf]), **settings).kept.tolist() == [0, 2]  # type: ignore[arg-type]
    assert judge(np.array([-inf, nan]), **settings).status == Status.NOTHING  # type: ignore[arg-type]
    assert judge(np.array([-inf, nan]), **settings).token == 0  # type: ignore[arg-type]


def test_edits_come_before_the_mask_and_both_before_everything_else() -> None:
    logits = torch.zeros(2, 3)
    edits = Edits(
        torch.tensor([0, 2, 2], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32), torch.tensor([5.0, 9.0])
    )
    mask = torch.tensor([[0b011], [0b110]], dtype=torch.int32)
    assert edited(logits, mask, edits).tolist() == [[5.0, 0.0, -np.inf], [-np.inf, 0.0, 0.0]]


def test_logprobs_are_of_the_raw_logits_and_count_ties_in_the_rank() -> None:
    params = Params(
        torch.tensor([0.0]),
        torch.tensor([0]),
        torch.tensor([1.0]),
        torch.tensor([0.0]),
        torch.tensor([0]),
        torch.tensor([0]),
    )
    answer = sample(torch.tensor(ROW[None]), params, mask=torch.tensor([[0b01100]]), num_logprobs=2)
    assert answer.logprobs is not None
    assert answer.logprobs.ids.tolist() == [[2, 1, 2]]
    torch.testing.assert_close(answer.logprobs.logprobs.exp(), torch.tensor([[0.2, 0.4, 0.2]]))
    assert answer.logprobs.rank.tolist() == [3]


def test_a_short_vocabulary_leaves_the_tail_of_the_logprobs_empty() -> None:
    answer = logprobs(torch.tensor([[1.0, 1.0]]), torch.tensor([1]), 3)
    assert answer.ids.tolist() == [[1, 0, 1, -1]]
    assert answer.logprobs[0, -1] == -np.inf
