"""What a replica carries: closed forms, no state.

In saturation every step is full: budget B = b + chunk, with b sequences decoding. Each request brings P prompt and O
output tokens, so prompts and answers balance at b = B · O / (P + O). From b follow the KV tokens held, the step's time
and the requests per second b / (O · step).
"""

import math

from serving.router.prediction import StepModel


def capacity_per_s(model: StepModel, prompt_tokens: float, output_tokens: float, tpot_slo_s: float) -> float:
    """Requests per second of the mean lengths given that saturate one replica while TPOT is met. Above 0."""
    num_sequences = max(
        1.0,
        min(
            model.max_num_batched_tokens * output_tokens / (prompt_tokens + output_tokens),
            model.max_num_seqs,
            model.kv_capacity_tokens / (prompt_tokens + output_tokens),
        ),
    )
    context_tokens = prompt_tokens + 0.5 * output_tokens
    per_sequence_s = model.c1_s_per_sequence + model.ckv_s_per_token * context_tokens
    # Mean TPOT = decode step / (share of time left by prompts); prompts take the rest of the budget in every step.
    chunk_tokens = min(
        model.max_num_batched_tokens - num_sequences,
        num_sequences * prompt_tokens / output_tokens,
    )
    step_s = model.c0_s + per_sequence_s * num_sequences + model.cp_s_per_token * max(0.0, chunk_tokens)
    if step_s > tpot_slo_s:
        # Fewer sequences at once; the step's fixed part is then shared by fewer.
        per_pair_s = per_sequence_s + model.cp_s_per_token * prompt_tokens / output_tokens
        num_sequences = max(1.0, (tpot_slo_s - model.c0_s) / per_pair_s)
        step_s = model.c0_s + per_pair_s * num_sequences
    return num_sequences / (output_tokens * step_s)


def prompt_share(model: StepModel, prompt_tokens: float, output_tokens: float) -> float:
    """Of a request's work in saturation, the prompt's part; a full step's fixed part is shared by its tokens."""
    fixed_s = model.c0_s / model.max_num_batched_tokens
    context_tokens = prompt_tokens + 0.5 * output_tokens
    prompt_work_s = prompt_tokens * (model.cp_s_per_token + fixed_s)
    output_work_s = output_tokens * (model.c1_s_per_sequence + model.ckv_s_per_token * context_tokens + fixed_s)
    return prompt_work_s / (prompt_work_s + output_work_s)


def prefill_s(model: StepModel, prompt_tokens: float) -> float:
    """Seconds to the first token on an idle replica."""
    num_steps = math.ceil(max(1.0, prompt_tokens) / model.max_num_batched_tokens)
    return num_steps * model.c0_s + model.cp_s_per_token * prompt_tokens


def longest_prompt_tokens(model: StepModel, ttft_s: float) -> float:
    """The longest prompt whose first token an idle replica makes within ``ttft_s``."""
    per_token_s = model.cp_s_per_token + model.c0_s / model.max_num_batched_tokens
    return max(0.0, ttft_s - model.c0_s) / per_token_s


def spoilt_share(model: StepModel, prefill_s: float, output_tokens: float, tpot_slo_s: float) -> float:
    """Share of the answers that miss their TPOT if one prompt of ``prefill_s`` comes in the middle.

    An answer of O tokens bears a pause of O · (SLO − step); lengths of answers are taken as exponential. From the
    simulator, with one CPU replica: 0.09 on BurstGPT's lengths, 0.13 on Azure's conversations, 0.57 on its code
    completions; here 0.09, 0.10 and 0.74.
    """
    spare_s = output_tokens * (tpot_slo_s - model.step_s(1.0, output_tokens))
    return 1.0 - math.exp(-prefill_s / spare_s) if spare_s > 0.0 else 1.0
