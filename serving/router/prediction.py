"""How soon a replica would answer: TTFT and TPOT predicted from its measured speeds and its pending work.

One engine step takes

    step = c0 + c1 · sequences + ckv · KV tokens + cp · prefill tokens

(`ballast bench calibrate` fits the four). With chunked prefill a step carries one token of every running sequence and
fills the rest of its token budget with prompt tokens, first come first served, so a backlog of prompt tokens drains at
(budget − sequences) / step.
"""

from dataclasses import dataclass
from typing import Self

from serving.protocol.frames import Load


@dataclass(frozen=True, slots=True)
class StepModel:
    """Measured speeds of one replica, and the bounds its engine was started with."""

    c0_s: float
    """Seconds of an empty step."""
    c1_s_per_sequence: float
    ckv_s_per_token: float
    """Seconds for each token that the sequences of a step hold in the KV cache."""
    cp_s_per_token: float
    """Seconds for each prompt token of a step."""
    max_num_batched_tokens: int
    """Token budget of a step."""
    max_num_seqs: int
    kv_capacity_tokens: int

    @classmethod
    def of(cls, load: Load) -> Self:
        """What a replica says of itself."""
        c0_s, c1_s_per_sequence, ckv_s_per_token, cp_s_per_token = load["speed"]
        return cls(
            c0_s,
            c1_s_per_sequence,
            ckv_s_per_token,
            cp_s_per_token,
            load["max_num_batched_tokens"],
            load["max_num_seqs"],
            load["kv_capacity_tokens"],
        )

    def step_s(self, num_sequences: float, kv_tokens: float, prefill_tokens: float = 0.0) -> float:
        """Seconds of one step."""
        return (
            self.c0_s
            + self.c1_s_per_sequence * num_sequences
            + self.ckv_s_per_token * kv_tokens
            + self.cp_s_per_token * prefill_tokens
        )


def prefill_tokens_per_s(model: StepModel, num_running: float, kv_tokens: float) -> float:
    """Speed at which a backlog of prompt tokens drains while ``num_running`` sequences decode."""
    chunk_tokens = max(1.0, model.max_num_batched_tokens - num_running)
    return chunk_tokens / model.step_s(num_running, kv_tokens, chunk_tokens)


def tpot_s(model: StepModel, num_running: float, kv_tokens: float) -> float:
    """Seconds per output token with one more sequence than now, between two prompts."""
    return model.step_s(num_running + 1, kv_tokens)
