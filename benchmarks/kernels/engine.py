"""The kernels in a real engine: ``python -m benchmarks.kernels.engine [--device cuda] [--json FILE]``.

Two vLLM engines of the same random Llama (six layers, V = 151,936; or of ``--model``) in two processes, one with
Ballast's kernels and one with vLLM's own sampler, generate the same batches by turns. Given are tokens/s of all
sequences, the time to the first token of all of them, and the seconds that an engine takes to load; of each the median
over rounds, and the ratio of the two. On a GPU the engines share the device, and each is idle while the other is asked.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import environment

PROMPT_TOKENS = 8
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
    "k+p+seeds, every fourth greedy": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 1},
}
_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine is given to do."""

    device: str
    """``cpu`` or ``cuda``."""
    num_sequences: int
    num_output_tokens: int
    model: str = ""
    """A folder, or a name that vLLM finds."""


DEFAULTS = {"cpu": Load("cpu", 32, 24), "cuda": Load("cuda", 256, 128)}


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


def engine_options(load: Load, mode: str) -> dict[str, Any]:
    """vLLM's arguments."""
    options: dict[str, Any] = {
        "model": load.model, "skip_tokenizer_init": True, "max_num_seqs": load.num_sequences, "max_model_len": 256,
        "enable_prefix_caching": False, "disable_log_stats": True, "additional_config": {"ballast_kernels": mode},
    }  # fmt: skip
    if load.device == "cuda":
        room = {"gpu_memory_utilization": 0.4}  # both engines are on the device
        return options | room | {"worker_cls": "serving.engine.gpu_worker.BallastGpuWorker"}
    return options | {
        "worker_cls": "serving.engine.cpu_worker.BallastCpuWorker", "enforce_eager": True,
        "kv_cache_memory_bytes": 2**28,
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    }  # fmt: skip


def serve(load: Load, mode: str) -> None:
    """A process with one engine: a line of JSON in is a batch, a line out what it took."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is not an answer
    import torch
    from vllm import LLM, SamplingParams

    before_s = time.perf_counter()
    llm = LLM(**engine_options(load, mode))
    gpu = torch.cuda.get_device_name() if load.device == "cuda" else None
    print(json.dumps({"load_s": time.perf_counter() - before_s, "gpu": gpu}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [
            {"prompt_token_ids": [3 + (7919 * row + step) % 1000 for step in range(PROMPT_TOKENS)]}
            for row in range(load.num_sequences)
        ]
        params = [
            SamplingParams(
                ignore_eos=True, detokenize=False, max_tokens=asked["num_tokens"], **params_of(asked["mode"], row)
            )
            for row in range(load.num_sequences)
        ]
        before_s = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        took_s = time.perf_counter() - before_s
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"took_s": took_s, "num_tokens": tokens}), file=answers, flush=True)


def params_of(mode: str, row: int) -> dict[str, Any]:
    """What the request of this row asks for: a seed of its own, and in a mixed batch perhaps nothing."""
    params = MODES[mode]
    if mode.endswith("every fourth greedy") and row % 4 == 0:
        return MODES["greedy"]
    return params | ({"seed": params["seed"] + row} if "seed" in params else {})


class Engine:
    """One of the two, as its process answers."""

    def __init__(self, load: Load, kernels: str) -> None:
        command = [sys.executable, "-m", "benchmarks.kernels.engine", "--serve", json.dumps(asdict(load)), kernels]
        self._process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._num_sequences = load.num_sequences
        answer = self._answer()
        self.load_s, self.gpu = float(answer["load_s"]), answer["gpu"]

    def generate(self, mode: str, num_tokens: int) -> float:
        """Seconds for a batch of so many tokens each."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"mode": mode, "num_tokens": num_tokens}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer["num_tokens"] == self._num_sequences * num_tokens, answer
        return float(answer["took_s"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the engine's process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def measure(load: Load, num_rounds: int, modes: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as folder:
        if not load.model:
            make_model(Path(folder))
            load = replace(load, model=folder)
        Engine(load, KERNELS).stop()  # compiles the kernels, and brings the weights into the page cache
        loads_s: dict[str, list[float]] = {KERNELS: [], STOCK: []}
        for _ in range(2):
            for kernels, seconds in loads_s.items():
                engine = Engine(load, kernels)
                seconds.append(engine.load_s)
                engine.stop()
        engines = {kernels: Engine(load, kernels) for kernels in loads_s}
        try:
            rows = [_compare(engines, mode, load, num_rounds) for mode in modes]
        finally:
            for engine in engines.values():
                engine.stop()
    load_s = {kernels: round(statistics.median(seconds), 2) for kernels, seconds in loads_s.items()}
    return {"num_rounds": num_rounds, "gpu": engines[KERNELS].gpu, "load_s": load_s, "modes": rows}


def _compare(engines: dict[str, Engine], mode: str, load: Load, num_rounds: int) -> dict[str, Any]:
    first_s: dict[str, list[float]] = {kernels: [] for kernels in engines}
    whole_s: dict[str, list[float]] = {kernels: [] for kernels in engines}
    for index in range(num_rounds + 1):
        for kernels, engine in engines.items():
            first, whole = engine.generate(mode, 1), engine.generate(mode, load.num_output_tokens)
            if index:
                first_s[kernels].append(first)
                whole_s[kernels].append(whole)
    num_tokens = load.num_sequences * load.num_output_tokens
    rate = {kernels: num_tokens / statistics.median(seconds) for kernels, seconds in whole_s.items()}
    ttft = {kernels: statistics.median(seconds) for kernels, seconds in first_s.items()}
    row = {
        "mode": mode,
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
    parser.add_argument("--device", choices=DEFAULTS, default="cpu")
    parser.add_argument("--model", help="instead of a random one of six layers; on this machine's disk")
    parser.add_argument("--sequences", type=int, help="how many at once: 32, on a GPU 256")
    parser.add_argument("--tokens", type=int, help="that each writes: 24, on a GPU 128; at most 240")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--serve", nargs=2, metavar=("LOAD", "MODE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        serve(Load(**json.loads(chosen.serve[0])), chosen.serve[1])
        return 0
    default = DEFAULTS[chosen.device]
    load = replace(
        default,
        model=chosen.model or "",
        num_sequences=chosen.sequences or default.num_sequences,
        num_output_tokens=chosen.tokens or default.num_output_tokens,
    )
    head = environment.describe()
    asked = {name: value for name, value in asdict(load).items() if name != "model"}
    found = measure(load, chosen.rounds, chosen.modes)
    print(json.dumps(found, indent=1))
    if chosen.json:
        environment.write(chosen.json, {**head, **asked, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
