"""Compiles every kernel for an H100 without having one, and prints a JSON object of registers and spills of each.

A script, because the tests around it run Triton as an interpreter: ``python tests/kernels/aot.py``.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.logprobs.kernel import logprob_kernel
from kernels.penalties.kernel import append_kernel, edits_kernel
from kernels.prepare_decode.kernel import prepare_decode_kernel
from kernels.sample.configs import CONFIG
from kernels.sample.kernel import block_stats_kernel, draw_kernel, mark_edits_kernel
from kernels.sample.wide import wide_kernel

TARGET = GPUTarget("cuda", 90, 32)
_TYPES = {
    "temperature_ptr": "*fp32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32", "seed_ptr": "*i64", "position_ptr": "*i64",
    "sum_ptr": "*fp32", "raw_max_ptr": "*fp32", "raw_sum_ptr": "*fp32", "edits_ptr": "*fp32", "status_ptr": "*u8",
    "in_prompt_ptr": "*u8", "bias_ptr": "*fp32", "rules_ptr": "*fp32",
    "logprobs_ptr": "*fp32", "positions_ptr": "*i64", "slot_mapping_ptr": "*i64",
}  # fmt: skip
_ALIGNED = {"logits_stride", "V", "mask_stride"}


def cases() -> Iterator[tuple[str, Any, dict[str, Any], int, str]]:
    """Name, kernel, compile-time values, warps and type of the logits, at a vocabulary of 152k."""
    rows = {"NB_PADDED": 2048, "ROWS": CONFIG.rows, "CAPACITY": CONFIG.capacity}
    for name, dtype, how, raw in (
        ("bf16", "*bf16", (False, False, 16), False),
        ("fp32", "*fp32", (False, False, 0), False),
        ("bf16, mask, edits, logprobs", "*bf16", (True, True, 0), True),
    ):
        stats = {"SAMPLES": True, "RAW": raw, "HOW": how, "TILE": CONFIG.tile}
        draw = {"HOW": how, "NT_PADDED": 128, "NUCLEUS_BLOCKS": CONFIG.nucleus_blocks, **rows}
        wide = {"HOW": how, "NB_PADDED": 2048, "ROWS": CONFIG.wide_rows}
        yield f"block_stats, {name}", block_stats_kernel, stats, CONFIG.stats_warps, dtype
        yield f"draw, {name}", draw_kernel, draw, CONFIG.draw_warps, dtype
        yield f"wide, {name}", wide_kernel, wide, CONFIG.wide_warps, dtype
    yield "logprobs, bf16", logprob_kernel, {"HOW": (False, False, 16), **rows}, CONFIG.draw_warps, "*bf16"
    yield "mark_edits", mark_edits_kernel, {"SIZE": 1024}, 4, "*bf16"
    yield "penalties, append", append_kernel, {"SIZE": 1024}, 4, "*bf16"
    yield "penalties, edits", edits_kernel, {"N_PADDED": 512, "SIZE": 1024}, 4, "*bf16"
    yield "prepare_decode", prepare_decode_kernel, {"KV_BLOCK_SIZE": 16, "BLOCK_B": 256}, 4, "*bf16"


def compiled(kernel: Any, constants: dict[str, Any], num_warps: int, dtype: str) -> dict[str, int]:
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        is_pointer = name.endswith("_ptr")
        signature[name] = dtype if name == "logits_ptr" else _TYPES.get(name, "*i32" if is_pointer else "i32")
        if is_pointer or name in _ALIGNED:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    found = triton.compile(source, target=TARGET, options={"num_warps": num_warps})
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(found.asm["ptx"])
        command = [str(ptxas), "-v", "--gpu-name=sm_90a", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "num_warps": num_warps,
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled_bytes": int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        "shared_bytes": int(found.metadata.shared),
    }


if __name__ == "__main__":
    report = {name: compiled(*case) for name, *case in cases()}
    json.dump({"triton": triton.__version__, "kernels": report}, sys.stdout, indent=1)
