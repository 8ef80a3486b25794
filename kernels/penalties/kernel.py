"""Device code of `penalties`: a request's distinct tokens stand in ascending order in its slot, so that the edits that
`sample` takes come out sorted."""

import triton
import triton.language as tl


@triton.jit
def append_kernel(
    slots_ptr, tokens_ptr, ids_ptr, counts_ptr, in_prompt_ptr, bias_ptr, length_ptr, CAPACITY, SIZE: tl.constexpr
):  # fmt: skip
    """Grid (N,). One more token of the output: its count goes up, or it moves in and the later ones up by one."""
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot >= 0:
        token = tl.load(tokens_ptr + row)
        length = tl.load(length_ptr + slot)
        tl.debug_barrier()  # a warp that read it late would read what another has written below
        ids_ptr += slot * CAPACITY
        counts_ptr += slot * CAPACITY
        in_prompt_ptr += slot * CAPACITY
        bias_ptr += slot * CAPACITY
        place = 0
        is_known = 0
        for start in range(0, length, SIZE):
            offs = start + tl.arange(0, SIZE)
            ids = tl.load(ids_ptr + offs, mask=offs < length, other=2147483647)
            place += tl.sum((ids < token).to(tl.int32), axis=0)
            is_known += tl.sum((ids == token).to(tl.int32), axis=0)
        if is_known > 0:
            tl.store(counts_ptr + place, tl.load(counts_ptr + place) + 1)
        elif length < CAPACITY:
            end = length
            while end > place:  # from the end, because what moves up would cover what is not yet read
                offs = end - 1 - tl.arange(0, SIZE)
                mask = offs >= place
                ids = tl.load(ids_ptr + offs, mask=mask)
                counts = tl.load(counts_ptr + offs, mask=mask)
                in_prompt = tl.load(in_prompt_ptr + offs, mask=mask)
                bias = tl.load(bias_ptr + offs, mask=mask)
                tl.debug_barrier()
                tl.store(ids_ptr + offs + 1, ids, mask=mask)
                tl.store(counts_ptr + offs + 1, counts, mask=mask)
                tl.store(in_prompt_ptr + offs + 1, in_prompt, mask=mask)
                tl.store(bias_ptr + offs + 1, bias, mask=mask)
                tl.debug_barrier()
                end -= SIZE
            tl.store(ids_ptr + place, token)
            tl.store(counts_ptr + place, 1)
            tl.store(in_prompt_ptr + place, (token * 0).to(tl.uint8))
            tl.store(bias_ptr + place, 0.0)
            tl.store(length_ptr + slot, length + 1)


@triton.jit
def edits_kernel(
    logits_ptr, logits_stride, slots_ptr, ids_ptr, counts_ptr, in_prompt_ptr, bias_ptr, length_ptr, rules_ptr,
    offsets_ptr, edit_ids_ptr, edits_ptr, CAPACITY, N, N_PADDED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Grid (N,). The row's tokens and their penalised logits, behind those of the rows before it."""
    row = tl.program_id(0)
    rows = tl.arange(0, N_PADDED)
    slots = tl.load(slots_ptr + rows, mask=rows < N, other=-1)
    lengths = tl.load(length_ptr + slots, mask=slots >= 0, other=0)
    first = tl.sum(tl.where(rows < row, lengths, 0), axis=0)
    length = tl.sum(tl.where(rows == row, lengths, 0), axis=0)
    if row == 0:
        tl.store(offsets_ptr, 0)
    tl.store(offsets_ptr + row + 1, first + length)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot >= 0:
        repetition = tl.load(rules_ptr + slot * 3)
        frequency = tl.load(rules_ptr + slot * 3 + 1)
        presence = tl.load(rules_ptr + slot * 3 + 2)
        for start in range(0, length, SIZE):
            offs = start + tl.arange(0, SIZE)
            mask = offs < length
            place = slot * CAPACITY + offs
            ids = tl.load(ids_ptr + place, mask=mask, other=0)
            count = tl.load(counts_ptr + place, mask=mask, other=0)
            is_seen = (count > 0) | (tl.load(in_prompt_ptr + place, mask=mask, other=0) != 0)
            x = tl.load(logits_ptr + row.to(tl.int64) * logits_stride + ids, mask=mask, other=0.0).to(tl.float32)
            x += tl.load(bias_ptr + place, mask=mask, other=0.0)
            x = tl.where(is_seen, x * tl.where(x > 0, 1.0 / repetition, repetition), x)
            x = x - frequency * count.to(tl.float32)
            x = x - tl.where(count > 0, presence, 0.0)
            tl.store(edit_ids_ptr + first + offs, ids, mask=mask)
            tl.store(edits_ptr + first + offs, x, mask=mask)
