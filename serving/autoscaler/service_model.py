"""What a replica carries, and what is lost when it is asked for more: closed forms, no state.

**Capacity.** In saturation every step is full: budget B = b + chunk, with b sequences decoding. Each request brings P
prompt and O output tokens, so prompts and answers balance at b = B · O / (P + O). From b follow the KV tokens held, the
step's time and the requests per second b / (O · step).

**Loss.** The gateway drops behind (`Hold.LATE`) what cannot get its first token within the TTFT SLO. The work ahead of
a request is then a diffusion reflected at 0 and at K = capacity · slack; its loss at the upper end is known (Harrison,
Brownian Motion and Stochastic Flow Systems, 1985): with load x, capacity C and variance rate V,

    loss = (C − x) / (exp(2 (C − x) K / V) − 1)        requests per second

which runs smoothly from exponentially rare (x < C) through V / 2K (x = C) to the plain excess x − C.
"""

import math

from serving.router.prediction import StepModel

_MANY = 500.0


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


def prefill_s(model: StepModel, prompt_tokens: float) -> float:
    """Seconds to the first token on an idle replica."""
    num_steps = math.ceil(max(1.0, prompt_tokens) / model.max_num_batched_tokens)
    return num_steps * model.c0_s + model.cp_s_per_token * prompt_tokens


def longest_prompt_tokens(model: StepModel, ttft_s: float) -> float:
    """The longest prompt whose first token an idle replica makes within ``ttft_s``."""
    per_token_s = model.cp_s_per_token + model.c0_s / model.max_num_batched_tokens
    return max(0.0, ttft_s - model.c0_s) / per_token_s


def loss_per_s(load_per_s: float, capacity_per_s: float, slack_s: float, dispersion: float) -> float:
    """Requests per second that cannot start within ``slack_s``. ``dispersion``: variance of the work that arrives, per
    mean, in requests (1 + CV² for Poisson arrivals)."""
    if load_per_s <= 0.0:
        return 0.0
    if capacity_per_s <= 0.0:
        return load_per_s
    spare_per_s = capacity_per_s - load_per_s
    room = capacity_per_s * slack_s
    variance_per_s = load_per_s * dispersion
    exponent = 2.0 * spare_per_s * room / variance_per_s
    if exponent > _MANY:
        return 0.0
    if exponent < -_MANY:
        return -spare_per_s
    if abs(exponent) < 1e-6:
        return min(load_per_s, variance_per_s / (2.0 * room))
    return min(load_per_s, spare_per_s / math.expm1(exponent))
