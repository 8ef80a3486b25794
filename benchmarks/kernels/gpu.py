"""Checks the sampler's Triton kernels on a GPU, then times them against what is installed beside them.

    python benchmarks/kernels/gpu.py --json gpu.json        # or: python -m benchmarks.kernels.gpu
    python benchmarks/kernels/gpu.py --dry-run              # on a CPU, in Triton's interpreter: checks and tiny timings

Needs torch, triton and numpy. Peers are FlashInfer and vLLM's Triton top-k/top-p with its Gumbel draw, each if it can
be imported, and torch (sort, cumulative sum, exponential noise). Nothing is timed unless every check passes. Times are
medians over replays of a CUDA graph, the L2 cache flushed before each; `roofline` is what reading the logits once would
take at this device's copying speed, as a share of the time.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    if "--dry-run" in sys.argv:
        os.environ["TRITON_INTERPRET"] = "1"  # settled when Triton is imported

import numpy as np
import torch
import triton

from benchmarks.kernels.gpu_checks import run_checks
from benchmarks.kernels.gpu_peers import Peer, installed_peers
from kernels.penalties.op import GpuPenalties
from kernels.penalties.rules import Rules
from kernels.sample.op import sample
from kernels.sample.types import Params

BATCHES = (1, 4, 8, 32, 64, 256, 512)
VOCABULARIES = (32_000, 128_256, 151_936, 262_144)
_FLUSH_BYTES = 256 * 2**20
_NUM_REPLAYS = 30


@dataclass(frozen=True, slots=True)
class Mode:
    """What every row of a batch asks for."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    num_logprobs: int | None = None
    is_mixed: bool = False
    """Every fourth row is greedy, and each has a seed of its own."""
    allowed: float | None = None
    """Share of the tokens that a grammar allows."""
    num_edits: int = 0
    """Distinct tokens that a row has seen, all penalised."""


MODES = {
    "greedy": Mode(temperature=0.0),
    "temperature": Mode(),
    "top-k": Mode(top_k=50),
    "top-p": Mode(top_p=0.9),
    "top-k and top-p": Mode(top_k=50, top_p=0.9),
    "top-k and top-p, seeds and greedy rows": Mode(top_k=50, top_p=0.9, is_mixed=True),
    "min-p": Mode(min_p=0.05),
    "logprobs": Mode(num_logprobs=5),
    "penalties": Mode(num_edits=500),
    "grammar, 2 % allowed": Mode(allowed=0.02),
    "grammar, 90 % allowed": Mode(allowed=0.9),
}


def params_of(mode: Mode, num_rows: int, device: str) -> Params:
    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((num_rows,), value, dtype=dtype, device=device)

    temperature = column(mode.temperature, torch.float32)
    if mode.is_mixed:
        temperature[::4] = 0.0
    return Params(
        temperature=temperature,
        top_k=column(mode.top_k, torch.int32),
        top_p=column(mode.top_p, torch.float32),
        min_p=column(mode.min_p, torch.float32),
        seed=torch.arange(num_rows, dtype=torch.int64, device=device),
        position=column(7, torch.int64),
    )


def logits_of(num_rows: int, num_tokens: int, device: str) -> torch.Tensor:
    """bfloat16, like a language model's: Zipf's law over shuffled ids, some noise on it."""
    generator = torch.Generator(device).manual_seed(num_tokens)
    ranks = torch.rand(num_rows, num_tokens, generator=generator, device=device).argsort(dim=1)
    noise = torch.randn(num_rows, num_tokens, generator=generator, device=device) / 2
    return (15 - 1.5 * torch.log(ranks + 2.0) + noise).to(torch.bfloat16)


def mask_of(mode: Mode, num_rows: int, num_tokens: int, device: str) -> torch.Tensor | None:
    """What a grammar allows lies together: ids that a JSON schema's token class takes are neighbours. The densest is
    scattered."""
    if mode.allowed is None:
        return None
    num_words = triton.cdiv(num_tokens, 32)
    generator = torch.Generator(device).manual_seed(1)
    if mode.allowed < 0.5:
        is_open = torch.rand(num_rows, num_words, generator=generator, device=device) < mode.allowed
        return -is_open.to(torch.int32)
    bits = torch.rand(num_rows, num_words, 32, generator=generator, device=device) < mode.allowed
    weights = 2 ** torch.arange(32, dtype=torch.int64, device=device)
    return (bits.to(torch.int64) * weights).sum(-1).to(torch.int32)


def penalties_of(mode: Mode, num_rows: int, num_tokens: int, device: str) -> GpuPenalties | None:
    """Of requests that have each seen ``num_edits`` tokens."""
    if not mode.num_edits:
        return None
    seen = np.linspace(0, num_tokens - 1, min(mode.num_edits, num_tokens)).astype(np.int64).tolist()
    penalties = GpuPenalties(num_rows, num_tokens, 2048, device)
    for slot in range(num_rows):
        penalties.add_request(slot, Rules(repetition=1.1, frequency=0.2), seen, seen)
    return penalties


class Clock:
    """Median seconds of a call: on a GPU by replays of its CUDA graph with the L2 cache flushed, else by the wall."""

    def __init__(self, device: str, num_replays: int) -> None:
        self._device = device
        self._num_replays = num_replays
        self._flush = torch.empty(_FLUSH_BYTES if device == "cuda" else 0, dtype=torch.int8, device=device)

    def seconds(self, call: Callable[[], object]) -> float:
        return statistics.median(self._cuda(call) if self._device == "cuda" else self._wall(call))

    def _cuda(self, call: Callable[[], object]) -> Iterator[float]:
        """Raises RuntimeError where the call cannot be captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self._num_replays):
            self._flush.zero_()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            yield begin.elapsed_time(end) / 1000

    def _wall(self, call: Callable[[], object]) -> Iterator[float]:
        for _ in range(self._num_replays):
            started = time.perf_counter()
            call()
            yield time.perf_counter() - started

    def copy_bytes_per_s(self) -> float:
        """How fast this device reads and writes memory together."""
        num_bytes = 2**30 if self._device == "cuda" else 2**20
        source = torch.ones(num_bytes, dtype=torch.int8, device=self._device)
        target = torch.empty_like(source)
        return 2 * num_bytes / self.seconds(lambda: target.copy_(source))


def time_mode(
    name: str, num_rows: int, num_tokens: int, clock: Clock, peers: Sequence[Peer], bytes_per_s: float, device: str
) -> dict[str, Any]:
    """Microseconds of `sample` and of each peer that has the mode; what a peer cannot do or fails at is said."""
    mode = MODES[name]
    logits = logits_of(num_rows, num_tokens, device)
    how, mask = params_of(mode, num_rows, device), mask_of(mode, num_rows, num_tokens, device)
    penalties = penalties_of(mode, num_rows, num_tokens, device)
    slots = torch.arange(num_rows, dtype=torch.int32, device=device)

    def ours() -> None:
        edits = None if penalties is None else penalties.edits(logits, slots)
        out = sample(logits, how, mask, edits, mode.num_logprobs)
        if penalties is not None:
            penalties.append(slots, out.token)

    ours_s = clock.seconds(ours)
    row: dict[str, Any] = {"mode": name, "B": num_rows, "V": num_tokens, "us": {"ballast": round(1e6 * ours_s, 2)}}
    row["roofline"] = round(logits.numel() * logits.element_size() / bytes_per_s / ours_s, 3)
    for peer in peers:
        call = peer.prepare(logits, how, mode)
        if call is None:
            continue
        try:
            row["us"][peer.name] = round(1e6 * clock.seconds(call), 2)
        except (
            AttributeError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # one peer's failure is a result, not the end
            row.setdefault("failed", {})[peer.name] = f"{type(error).__name__}: {error}"[:200]
    return row


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "numpy": np.__version__}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    if device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def print_row(row: dict[str, Any]) -> None:
    ours = row["us"]["ballast"]
    others = "  ".join(f"{name} {us:.1f} ({us / ours:.2f}x)" for name, us in row["us"].items() if name != "ballast")
    print(f"{row['V']:7} {row['B']:4} {row['mode']:40} {ours:9.1f} {row['roofline']:6.0%}  {others}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=tuple(MODES))
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="in Triton's interpreter, on a CPU, tiny")
    options = parser.parse_args(arguments)
    device = "cpu" if options.dry_run else "cuda"
    batches, vocabularies = ((2,), (1003,)) if options.dry_run else (options.batches, options.vocabularies)

    with np.errstate(all="ignore"):  # the interpreter's numpy warns where a device gives an infinity
        failures = run_checks(device, tiny=options.dry_run)
    print(f"checks: {'passed' if not failures else 'FAILED'}")
    for failure in failures:
        print(f"  {failure}")
    report: dict[str, Any] = {"schema_version": 1, "machine": machine(device), "failed_checks": failures, "results": []}
    if not failures and not options.check_only:
        clock = Clock(device, 1 if options.dry_run else _NUM_REPLAYS)
        bytes_per_s = clock.copy_bytes_per_s()
        report["copy_gb_per_s"] = round(bytes_per_s / 1e9, 1)
        peers = installed_peers(device)
        print(f"copy {report['copy_gb_per_s']} GB/s; peers: {', '.join(peer.name for peer in peers)}")
        for num_tokens in vocabularies:
            for num_rows in batches:
                for name in options.modes:
                    row = time_mode(name, num_rows, num_tokens, clock, peers, bytes_per_s, device)
                    report["results"].append(row)
                    print_row(row)
                    if options.json:
                        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
