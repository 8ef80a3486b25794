"""Device code of `prepare_decode`: one program a row."""

import triton
import triton.language as tl


@triton.jit
def prepare_decode_kernel(
    slots_ptr,
    last_tokens_ptr,
    num_computed_ptr,
    table_ptr,
    input_ids_ptr,
    positions_ptr,
    seq_lens_ptr,
    step_table_ptr,
    slot_mapping_ptr,
    max_blocks,
    KV_BLOCK_SIZE: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    runs = slot >= 0
    position = tl.load(num_computed_ptr + slot, mask=runs, other=0)
    token = tl.load(last_tokens_ptr + slot, mask=runs, other=0)
    last_block = position // KV_BLOCK_SIZE
    block_id = tl.load(table_ptr + slot * max_blocks + last_block, mask=runs, other=0).to(tl.int64)
    tl.store(input_ids_ptr + row, token)
    tl.store(positions_ptr + row, position.to(tl.int64))
    tl.store(seq_lens_ptr + row, tl.where(runs, position + 1, 0))
    tl.store(slot_mapping_ptr + row, tl.where(runs, block_id * KV_BLOCK_SIZE + position % KV_BLOCK_SIZE, -1))
    num_blocks = tl.where(runs, last_block + 1, max_blocks)  # a padded row is cleared to its end
    for start in range(0, num_blocks, BLOCK_B):
        offs = start + tl.arange(0, BLOCK_B)
        mask = offs < num_blocks
        blocks = tl.load(table_ptr + slot * max_blocks + offs, mask=mask & runs, other=0)
        tl.store(step_table_ptr + row * max_blocks + offs, blocks, mask=mask)
