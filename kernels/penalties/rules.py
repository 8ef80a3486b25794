"""What a request asks to be done to its logits."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rules:
    """Per token i, with ``count`` its occurrences in the output so far, in float32, in this order:

        x += bias[i]
        x  = x * (1 / repetition) if x > 0 else x * repetition     if i is in the prompt or the output
        x -= frequency * count
        x -= presence                                              if i is in the output

    as vLLM's `v1/sample/sampler.py::apply_logits_processors` has it. A bias of -inf is a ban.
    """

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
