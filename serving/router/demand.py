"""What one gateway has seen of a model's demand: counts for the autoscaler, and expectations for the router."""

from dataclasses import dataclass, field

from serving.autoscaler.types import NUM_PROMPT_BUCKETS, prompt_bucket

_FADE = 0.02
"""Weight of a new request in the running means."""
_FIRST_OUTPUT_TOKENS = 128.0
_FIRST_TOKENS_PER_BYTE = 0.25


@dataclass(slots=True)
class DemandMeter:
    """Of one model, since the gateway started. ``num_met`` and ``num_missed`` count requests against the SLO."""

    num_arrived: int = 0
    prompt_tokens: int = 0
    prompts: list[int] = field(default_factory=lambda: [0] * NUM_PROMPT_BUCKETS)
    num_finished: int = 0
    output_tokens: int = 0
    num_met: int = 0
    num_missed: int = 0
    _mean_output_tokens: float = _FIRST_OUTPUT_TOKENS
    _tokens_per_byte: float = _FIRST_TOKENS_PER_BYTE

    def expected_prompt_tokens(self, num_bytes: int) -> int:
        """Of a request of so many bytes: the tokenizer is in the engine."""
        return max(1, round(num_bytes * self._tokens_per_byte))

    def expected_output_tokens(self, limit: int | None) -> float:
        return self._mean_output_tokens if limit is None else min(self._mean_output_tokens, limit)

    def on_arrival(self, prompt_tokens: int) -> None:
        self.num_arrived += 1
        self.prompt_tokens += prompt_tokens
        self.prompts[prompt_bucket(prompt_tokens)] += 1

    def on_finish(self, num_bytes: int, prompt_tokens: int, output_tokens: int) -> None:
        """``prompt_tokens`` and ``output_tokens`` as the engine has counted them."""
        self.num_finished += 1
        self.output_tokens += output_tokens
        weight = max(_FADE, 1.0 / self.num_finished)
        self._mean_output_tokens += weight * (output_tokens - self._mean_output_tokens)
        if prompt_tokens:
            self._tokens_per_byte += weight * (prompt_tokens / max(1, num_bytes) - self._tokens_per_byte)

    def on_slo(self, is_met: bool) -> None:
        if is_met:
            self.num_met += 1
        else:
            self.num_missed += 1
