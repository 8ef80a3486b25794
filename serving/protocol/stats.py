"""What a gateway tells the autoscaler, as flat numbers: Ray Serve carries a dict of floats and no more.

Counters only grow from the start of a gateway; the reader takes differences (`serving/autoscaler/observe.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

Stats = dict[str, float]

_STREAMS = "streams/"


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One pool: what its engines have done, what a step costs one of them now, and its bounds (0: not known)."""

    num_steps: float = 0.0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    kv_token_steps: float = 0.0
    busy_s: float = 0.0
    c0_s: float = 0.0
    c1_s_per_sequence: float = 0.0
    ckv_s_per_token: float = 0.0
    cp_s_per_token: float = 0.0
    max_num_batched_tokens: float = 0.0
    max_num_seqs: float = 0.0
    kv_capacity_tokens: float = 0.0

    def as_stats(self, model: str, pool: str) -> Stats:
        return {f"{model}/{pool}/{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def read(cls, stats: Mapping[str, float], model: str, pool: str) -> Self:
        """What is not there is 0."""
        return cls(**{field.name: stats.get(f"{model}/{pool}/{field.name}", 0.0) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class DemandStats:
    """One model. From ``num_queued`` on they are of now, the others count."""

    num_arrived: float = 0.0
    prompt_tokens: float = 0.0
    num_finished: float = 0.0
    output_tokens: float = 0.0
    num_met: float = 0.0
    num_missed: float = 0.0
    num_queued: float = 0.0
    num_late: float = 0.0
    late_prompt_tokens: float = 0.0
    oldest_late_s: float = 0.0
    num_turned_away: float = 0.0
    turned_away_prompt_tokens: float = 0.0

    def as_stats(self, model: str, prompts: Sequence[int]) -> Stats:
        """``prompts``: arrivals by length of prompt (`autoscaler.types.prompt_bucket`)."""
        own = {f"{model}/{field.name}": float(getattr(self, field.name)) for field in fields(self)}
        return own | {f"{model}/prompts{index}": float(count) for index, count in enumerate(prompts)}

    @classmethod
    def read(cls, stats: Mapping[str, float], model: str) -> Self:
        """What is not there is 0."""
        return cls(**{field.name: stats.get(f"{model}/{field.name}", 0.0) for field in fields(cls)})

    @staticmethod
    def as_streams(streams: Mapping[str, int]) -> Stats:
        """Open streams by replica."""
        return {f"{_STREAMS}{replica}": float(number) for replica, number in streams.items()}

    @staticmethod
    def read_streams(stats: Mapping[str, float]) -> dict[str, float]:
        return {name.removeprefix(_STREAMS): number for name, number in stats.items() if name.startswith(_STREAMS)}

    @staticmethod
    def are_in(stats: Mapping[str, float]) -> bool:
        """Whether they are ``stats`` of a gateway."""
        return any(name.endswith("/num_arrived") for name in stats)

    @staticmethod
    def read_prompts(stats: Mapping[str, float], model: str, num_buckets: int) -> tuple[float, ...]:
        return tuple(stats.get(f"{model}/prompts{index}", 0.0) for index in range(num_buckets))
