"""What a draft by prompt lookup costs: the index against vLLM's rescan. ``python -m benchmarks.kernels.ngram_index``.

Every step each of B requests has one new token and both proposers are asked for drafts, in turn, from the same arrays;
they must agree, or nothing is printed. A step's cost includes the lists that vLLM wants. The prompts are Zipf-like ids
in which passages repeat. What a rescan does not pay, the first sight of a prompt, stands beside it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.v1.spec_decode.ngram_proposer import NgramProposer

from benchmarks import environment
from kernels.ngram_index.cpu import NgramIndex

RESULT = Path(__file__).parent.parent / "results" / "ngram_index.json"
MIN_N, MAX_N, NUM_DRAFTS = 2, 5, 4
_NUM_STEPS = 60
_VOCABULARY = 32_000


def contexts(num_requests: int, num_tokens: int, seed: int = 1) -> npt.NDArray[np.int32]:
    """[B, num_tokens]: a third of each is passages copied from before, as in code and quoted documents."""
    draw = np.random.default_rng(seed)
    tokens = (draw.zipf(1.2, (num_requests, num_tokens)) % _VOCABULARY).astype(np.int32)
    for row in tokens:
        for start in range(num_tokens // 3, num_tokens - 24, 72):
            source = draw.integers(0, start - 24)
            row[start : start + 24] = row[source : source + 24]
    return tokens


def time_steps(num_requests: int, num_context: int) -> dict[str, float]:
    """Medians in µs over `_NUM_STEPS` steps at about ``num_context`` tokens each.

    Raises:
        RuntimeError: the two proposed different drafts.
    """
    max_tokens = num_context + _NUM_STEPS + 1
    token_ids = contexts(num_requests, max_tokens)
    index = NgramIndex(num_requests, max_tokens, MIN_N, MAX_N, NUM_DRAFTS)
    index.warm_up()
    peer = _peer(num_requests, max_tokens)
    rows = np.arange(num_requests, dtype=np.int32)
    sampled = [[0]] * num_requests
    lengths = np.full(num_requests, num_context, np.int32)

    started = time.perf_counter()
    index.propose(rows, rows, lengths, token_ids)
    first_us = 1e6 * (time.perf_counter() - started)
    ours_us, theirs_us, num_drafts = [], [], 0
    for _ in range(_NUM_STEPS):
        lengths += 1
        started = time.perf_counter()
        ours = index.propose(rows, rows, lengths, token_ids).lists()
        between = time.perf_counter()
        theirs = peer.propose(NUM_DRAFTS, sampled, lengths, token_ids)
        theirs_us.append(1e6 * (time.perf_counter() - between))
        ours_us.append(1e6 * (between - started))
        if ours != theirs:
            raise RuntimeError(f"different drafts at {num_requests} x {num_context}: {ours} and {theirs}")
        num_drafts += sum(map(len, ours))
    return {
        "index_us": round(statistics.median(ours_us), 2),
        "vllm_us": round(statistics.median(theirs_us), 2),
        "ratio": round(statistics.median(t / o for t, o in zip(theirs_us, ours_us, strict=True)), 2),
        "first_sight_us_per_1k_tokens": round(first_us / (num_requests * num_context) * 1000, 2),
        "drafts_per_step_and_request": round(num_drafts / _NUM_STEPS / num_requests, 2),
    }


def _peer(num_requests: int, max_tokens: int) -> Any:
    """vLLM's proposer with the few settings it reads; its constructor compiles it."""
    settings = SimpleNamespace(
        speculative_config=SimpleNamespace(
            prompt_lookup_min=MIN_N, prompt_lookup_max=MAX_N, num_speculative_tokens=NUM_DRAFTS
        ),
        model_config=SimpleNamespace(max_model_len=max_tokens),
        scheduler_config=SimpleNamespace(max_num_seqs=max(num_requests, 1024)),  # its warm-up has 1024 rows
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )
    return NgramProposer(settings)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    report = environment.describe()
    results = {}
    print(f"{'context':>8} {'B':>4} {'index µs':>10} {'vLLM µs':>10} {'ratio':>8}")
    for num_context in options.contexts:
        for num_requests in options.batches:
            row = results[f"context {num_context}, B {num_requests}"] = time_steps(num_requests, num_context)
            figures = f"{row['index_us']:10.1f} {row['vllm_us']:10.1f} {row['ratio']:8.1f}"
            print(f"{num_context:8} {num_requests:4} {figures}", flush=True)
    report["settings"] = {"min_n": MIN_N, "max_n": MAX_N, "num_drafts": NUM_DRAFTS, "num_steps": _NUM_STEPS}
    report["results"] = results
    options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
