"""What vLLM's CPU engine writes when it drafts by prompt lookup, with Ballast's kernels and then without.

``python -m tests.support.drafting_engine MODEL`` writes a line of JSON for each.
"""

import json
import os
import sys
from typing import Any

PROMPTS = ["one two three one two three one two", "hello there hello there hello", "abc " * 30, "The cat sat on the"]


def answers(model: str, kernels: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    from serving.engine.sampling_counts import VARIABLE, SamplingCounts

    counts = SamplingCounts.made()
    os.environ[VARIABLE] = counts.path
    llm = LLM(
        model=model, enforce_eager=True, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=128,
        kv_cache_memory_bytes=2**24, disable_log_stats=False, additional_config={"ballast_kernels": kernels},
        worker_cls="serving.engine.cpu_worker.BallastCpuWorker",
        distributed_executor_backend="vllm.v1.executor.uniproc_executor.UniProcExecutor",
        speculative_config={
            "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3
        },
    )  # fmt: skip
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    greedy = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    outputs = llm.generate(PROMPTS, greedy, use_tqdm=False)
    metrics = {each.name: getattr(each, "value", None) for each in llm.get_metrics()}
    return {
        "drafter": type(runner.drafter).__name__,
        "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
        "num_accepted": metrics.get("vllm:spec_decode_num_accepted_tokens"),
        "counts": counts.values(),
    }


def main() -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is not an answer
    for kernels in ("on", "off"):
        print(json.dumps(answers(sys.argv[1], kernels)), file=lines, flush=True)


if __name__ == "__main__":
    main()
