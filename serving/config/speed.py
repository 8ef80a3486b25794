"""The ``speed`` section of a pool: what an engine step costs before the running engine has been measured."""

from pydantic import Field

from serving.config.section import Section
from serving.protocol.frames import StepSpeed

CPU_SPEED: StepSpeed = (0.02, 0.001, 1e-6, 0.0005)
"""Of one core and a small model, in its order of magnitude. About a thousand steps replace it."""
CUDA_SPEED: StepSpeed = (0.011, 5e-5, 8e-8, 1e-4)
"""Of an A100-class GPU and a model of 8 billion parameters."""
GUESS_STEPS, CALIBRATED_STEPS = 8.0, 100.0
"""How many measured steps a guess by device is worth, and how many a pool's own ``speed`` section: a replica that has
only ever served two requests at once knows little of what sixty would cost it, and whoever has measured that is to be
believed.
"""


class Speed(Section):
    """Seconds of one engine step = step + sequence · sequences + kv_token · tokens in the KV cache + prompt_token ·
    prompt tokens. `ballast bench calibrate` writes it; a running engine goes on learning from there."""

    step_s: float = Field(ge=0, le=60, description="Seconds of a step in itself.")
    sequence_s: float = Field(ge=0, le=60, description="Seconds for each sequence that decodes.")
    kv_token_s: float = Field(ge=0, le=60, description="Seconds for each token in the KV cache.")
    prompt_token_s: float = Field(gt=0, le=60, description="Seconds for each prompt token.")

    def as_step_speed(self) -> StepSpeed:
        return (self.step_s, self.sequence_s, self.kv_token_s, self.prompt_token_s)
