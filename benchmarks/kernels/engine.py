"""The kernels in a real engine: ``python -m benchmarks.kernels.engine [--json FILE]``.

Two vLLM engines of the same random Llama (six layers, V = 151,936) in two processes, one with Ballast's kernels and one
with vLLM's own sampler, generate the same batches by turns. Given are tokens/s of 32 sequences, the time to the first
token of all of them, and the seconds that an engine takes to load; of each the median over rounds, and the ratio
of the two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment

NUM_SEQUENCES, PROMPT_TOKENS, OUTPUT_TOKENS = 32, 8, 24
NUM_TOKENS = 151_936
KERNELS, STOCK = "on", "off"
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "k+p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "k+p+seeds": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 1},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "min-p": {"temperature": 0.8, "min_p": 0.05},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
}
_ROOT = Path(__file__).resolve().parent.parent.parent


def make_model(folder: Path) -> None:
    """A random Llama of about 175 million parameters, whose rows of logits are as peaked as a trained model's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM_TOKENS, hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False, dtype="bfloat16",
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)  # logits of standard deviation about 3.6
    model.save_pretrained(folder)


def serve(model: str, mode: str) -> None:
    """A process with one engine: a line of JSON in is a batch, a line out what it took."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is not an answer
    from vllm import LLM, SamplingParams

    before_s = time.perf_counter()
    llm = LLM(
        model=model, skip_tokenizer_init=True, enforce_eager=True, max_num_seqs=NUM_SEQUENCES, max_model_len=256,
        enable_prefix_caching=False, kv_cache_memory_bytes=2**28, disable_log_stats=True,
        distributed_executor_backend="vllm.v1.executor.uniproc_executor.UniProcExecutor",
        worker_cls="serving.engine.cpu_worker.BallastCpuWorker", additional_config={"ballast_kernels": mode},
    )  # fmt: skip
    print(json.dumps({"load_s": time.perf_counter() - before_s}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [
            {"prompt_token_ids": [3 + (7919 * row + step) % 1000 for step in range(PROMPT_TOKENS)]}
            for row in range(NUM_SEQUENCES)
        ]
        params = [
            SamplingParams(ignore_eos=True, detokenize=False, **asked["params"] | _own_seed(asked["params"], row))
            for row in range(NUM_SEQUENCES)
        ]
        before_s = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        took_s = time.perf_counter() - before_s
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"took_s": took_s, "num_tokens": tokens}), file=answers, flush=True)


def _own_seed(params: dict[str, Any], row: int) -> dict[str, int]:
    return {"seed": params["seed"] + row} if "seed" in params else {}


class Engine:
    """One of the two, as its process answers."""

    def __init__(self, model: str, mode: str) -> None:
        command = [sys.executable, "-m", "benchmarks.kernels.engine", "--serve", model, mode]
        self._process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_s = float(self._answer()["load_s"])

    def generate(self, params: dict[str, Any], num_tokens: int) -> float:
        """Seconds for a batch of so many tokens each."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"params": {**params, "max_tokens": num_tokens}}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer["num_tokens"] == NUM_SEQUENCES * num_tokens, answer
        return float(answer["took_s"])

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the engine's process has ended")
        answer: dict[str, float] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def measure(num_rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as folder:
        make_model(Path(folder))
        Engine(folder, KERNELS).stop()  # compiles the kernels, and brings the weights into the page cache
        loads_s: dict[str, list[float]] = {KERNELS: [], STOCK: []}
        for _ in range(2):
            for mode, seconds in loads_s.items():
                engine = Engine(folder, mode)
                seconds.append(engine.load_s)
                engine.stop()
        engines = {mode: Engine(folder, mode) for mode in loads_s}
        try:
            rows = [_compare(engines, name, params, num_rounds) for name, params in MODES.items()]
        finally:
            for engine in engines.values():
                engine.stop()
    load_s = {mode: round(statistics.median(seconds), 2) for mode, seconds in loads_s.items()}
    return {"num_rounds": num_rounds, "load_s": load_s, "modes": rows}


def _compare(engines: dict[str, Engine], name: str, params: dict[str, Any], num_rounds: int) -> dict[str, Any]:
    first_s: dict[str, list[float]] = {mode: [] for mode in engines}
    whole_s: dict[str, list[float]] = {mode: [] for mode in engines}
    for index in range(num_rounds + 1):
        for mode, engine in engines.items():
            first, whole = engine.generate(params, 1), engine.generate(params, OUTPUT_TOKENS)
            if index:
                first_s[mode].append(first)
                whole_s[mode].append(whole)
    rate = {mode: NUM_SEQUENCES * OUTPUT_TOKENS / statistics.median(seconds) for mode, seconds in whole_s.items()}
    ttft = {mode: statistics.median(seconds) for mode, seconds in first_s.items()}
    row = {
        "mode": name,
        "kernels_tokens_per_s": round(rate[KERNELS], 1),
        "stock_tokens_per_s": round(rate[STOCK], 1),
        "ratio": round(statistics.median(s / k for s, k in zip(whole_s[STOCK], whole_s[KERNELS], strict=True)), 2),
        "kernels_ttft_s": round(ttft[KERNELS], 4),
        "stock_ttft_s": round(ttft[STOCK], 4),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--serve", nargs=2, metavar=("MODEL", "MODE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        serve(*chosen.serve)
        return 0
    head = environment.describe()
    found = measure(chosen.rounds)
    print(json.dumps(found, indent=1))
    if chosen.json:
        environment.write(chosen.json, {**head, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
