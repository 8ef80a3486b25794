"""The ``autoscaler`` section: whether it acts, and how patient it is."""

from typing import Literal

from pydantic import Field

from serving.config.section import Section


class AutoscalerConfig(Section):
    """How the pools are sized (docs/autoscaling.md)."""

    mode: Literal["act", "recommend"] = Field(
        default="act", description="act: size the pools; recommend: only record what it would do (`ballast autoscale`)."
    )
    min_hold_s: float = Field(
        default=60.0, ge=1, le=86_400, description="Seconds that a replica is kept after it was last needed, at least."
    )
    relearn_s: float = Field(
        default=900.0, ge=0, le=86_400, description="Seconds after a start in which no primary pool is made smaller."
    )
    patience_s: float = Field(
        default=10.0, ge=0, le=86_400, description="Seconds that a late request waits before it is worth a replica."
    )
    back_off_s: float = Field(
        default=60.0, ge=1, le=86_400, description="Seconds that a pool is left alone when a replica fails to start."
    )
