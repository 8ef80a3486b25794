"""What a real engine writes: ``python -m tests.support.sampling_engine cpu|cuda MODEL on|off`` writes JSON."""

import json
import os
import sys
from typing import Any

from benchmarks.kernels.engine import Load, engine_options

PROMPTS = [[5 + row, 6, 7, 8 + row] for row in range(6)]
GREEDY: dict[str, Any] = {"temperature": 0.0}
SEEDED: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 11}
OTHERS: list[dict[str, Any]] = [
    GREEDY, {"temperature": 1.0}, {"temperature": 0.7, "min_p": 0.05, "seed": 3},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 0.0, "logit_bias": {9: 3.0}, "logprobs": 3},
]  # fmt: skip


def answers(load: Load, kernels: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    from serving.engine.sampling_counts import VARIABLE, SamplingCounts

    counts = SamplingCounts.made()
    os.environ[VARIABLE] = counts.path
    llm = LLM(**engine_options(load, kernels) | {"enforce_eager": True})

    def written(asked: list[dict[str, Any]]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": ids} for ids in PROMPTS[: len(asked)]]
        params = [SamplingParams(ignore_eos=True, detokenize=False, max_tokens=12, **each) for each in asked]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return {
        "greedy": written([GREEDY] * len(PROMPTS)),
        "penalised": written([OTHERS[3]]),
        "alone": written([SEEDED])[0],
        "together": written([SEEDED, *OTHERS])[0],
        "counts": counts.values(),
    }


def main() -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is not an answer
    load = Load(sys.argv[1], num_sequences=8, num_output_tokens=12, model=sys.argv[2])
    print(json.dumps(answers(load, kernels=sys.argv[3])), file=lines, flush=True)


if __name__ == "__main__":
    main()
