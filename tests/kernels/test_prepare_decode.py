"""One launch gives what the row-by-row reference gives."""

import dataclasses

import pytest
import torch

from kernels.prepare_decode import reference
from kernels.prepare_decode.op import prepare_decode
from kernels.prepare_decode.types import NO_SLOT, Requests, Step

BLOCK_SIZE, MAX_BLOCKS, NUM_SLOTS = 16, 300, 12


def requests(slots: list[int], device: str) -> Requests:
    generator = torch.Generator().manual_seed(1)

    def ints(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)

    computed = ints(BLOCK_SIZE * MAX_BLOCKS, NUM_SLOTS)
    computed[:4] = torch.tensor([0, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE * MAX_BLOCKS - 1])
    return Requests(
        slots=torch.tensor(slots, dtype=torch.int32, device=device),
        last_tokens=ints(150_000, NUM_SLOTS).to(device),
        num_computed_tokens=computed.to(device),
        block_table=ints(2**31 - 1, NUM_SLOTS, MAX_BLOCKS).to(device),
    )


def stale(num_rows: int, device: str) -> Step:
    """Buffers with what an earlier step left in them."""
    step = Step.empty(num_rows, MAX_BLOCKS, device)
    for field in dataclasses.fields(step):
        getattr(step, field.name).fill_(77)
    return step


@pytest.mark.parametrize("slots", [[0, 1, 2, 3], [7], [11, 3, 5, 0, 9], [2, NO_SLOT, 4, NO_SLOT], [NO_SLOT]], ids=str)
def test_equals_the_reference_and_writes_nothing_else(slots: list[int], device: str) -> None:
    given = requests(slots, device)
    wanted, got = stale(len(slots), device), stale(len(slots), device)
    reference.prepare_decode(given, BLOCK_SIZE, wanted)
    prepare_decode(given, BLOCK_SIZE, got)
    for field in dataclasses.fields(Step):
        assert torch.equal(getattr(got, field.name), getattr(wanted, field.name)), field.name


def test_a_slot_beyond_32_bits_is_no_overflow(device: str) -> None:
    given = requests([5], device)
    given.block_table.fill_(2**31 - 1)
    step = stale(1, device)
    prepare_decode(given, BLOCK_SIZE, step)
    assert step.slot_mapping[0] == (2**31 - 1) * BLOCK_SIZE + int(given.num_computed_tokens[5]) % BLOCK_SIZE


def test_no_row_is_no_launch(device: str) -> None:
    prepare_decode(requests([], device), BLOCK_SIZE, stale(0, device))


def test_a_wrong_type_is_named(device: str) -> None:
    given = dataclasses.replace(requests([0], device), slots=torch.zeros(1, dtype=torch.int64, device=device))
    with pytest.raises(ValueError, match=r"slots: torch.int64 \(1,\), must be contiguous torch.int32"):
        prepare_decode(given, BLOCK_SIZE, stale(1, device))
