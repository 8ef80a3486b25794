"""A pool: replicas of one model on one kind of device, at one price."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from serving.config.engine import CpuEngine, CudaEngine
from serving.config.section import ConfigPath, PoolName, Section
from serving.config.speed import CALIBRATED_STEPS, CPU_SPEED, CUDA_SPEED, GUESS_STEPS, Speed
from serving.protocol.frames import StepSpeed

DEFAULT_GPU_MEMORY_UTILIZATION = 0.9
"""vLLM's usual share: the rest is room for CUDA graphs, NCCL and fragmentation."""


CPU_COLD_START_S, CUDA_COLD_START_S = 15.0, 180.0

_WATCHDOG = "Seconds that one step of the engine may take; a replica that stands still longer is replaced."


class Replicas(Section):
    """Bounds between which the autoscaler sizes a pool."""

    min: int = Field(default=1, ge=0, le=1024, description="Replicas kept even when idle.")
    max: int = Field(default=1, ge=1, le=1024, description="Replicas never exceeded.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is over max ({self.max})")
        return self


class Fallback(Section):
    """Which requests of a sibling pool this one may take over when that pool cannot serve them."""

    max_prompt_tokens: int = Field(default=1024, ge=1, le=10_000_000, description="Longest prompt it takes over.")
    max_output_tokens: int = Field(
        default=256,
        ge=1,
        le=10_000_000,
        description="Longest answer it takes over; of requests that name no bound, the expected length.",
    )
    keys: tuple[str, ...] | None = Field(
        default=None, strict=False, description="Ids of the API keys whose requests it takes over; null: all."
    )


def _interpreter(value: Path) -> Path:
    """``value``, not resolved: the link in an environment's ``bin`` is what makes it that environment's."""
    if not os.access(value, os.X_OK):
        raise ValueError(f"no program: {value} (`make setup DEVICE=cpu VENV=.venv-cpu` makes an environment)")
    return value


class _Pool(Section):
    name: PoolName = Field(description="Name of the pool, unique within its model; shown in x-ballast-pool.")
    usd_per_hour: float = Field(ge=0, le=100_000, description="Price of one replica for an hour, in US dollars.")
    replicas: Replicas = Field(default=Replicas(), description="How many replicas.")
    speed: Speed | None = Field(
        default=None, description="What an engine step costs until it is measured; null: a guess by device."
    )
    cold_start_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="Seconds from the decision to a ready replica, before any was seen; null: a guess by device.",
    )
    python: Annotated[ConfigPath, AfterValidator(_interpreter)] | None = Field(
        default=None,
        description="Python of another environment, for a pool whose device needs other packages; null: the server's.",
    )
    fallback: Fallback | None = Field(
        default=None, description="Set: this pool stands in for its siblings, within these bounds."
    )

    @property
    def seed_steps(self) -> float:
        """How many measured steps outweigh the seed's speed."""
        return CALIBRATED_STEPS if self.speed else GUESS_STEPS


class CpuPool(_Pool):
    """Replicas on CPU cores."""

    device: Literal["cpu"] = Field(description="cpu or cuda.")
    watchdog_s: float = Field(default=60.0, ge=1, le=3600, description=_WATCHDOG)
    cpus_per_replica: float = Field(gt=0, le=1024, description="CPU cores of one replica; it runs that many threads.")
    engine: CpuEngine = Field(default=CpuEngine(), description="Engine settings.")

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Whether a node of Ray with these resources, all of them free, could take one replica."""
        return resources.get("CPU", 0.0) >= self.cpus_per_replica

    @property
    def seed_speed(self) -> StepSpeed:
        """What an engine step costs until it has been measured."""
        return self.speed.as_step_speed() if self.speed else CPU_SPEED

    @property
    def seed_cold_start_s(self) -> float:
        """Seconds to a ready replica until one was seen to start."""
        return self.cold_start_s or CPU_COLD_START_S

    @property
    def num_threads(self) -> int:
        """Compute threads of one replica: whole cores, at least one."""
        return max(1, int(self.cpus_per_replica))


class CudaPool(_Pool):
    """Replicas on NVIDIA GPUs of one node."""

    device: Literal["cuda"] = Field(description="cpu or cuda.")
    watchdog_s: float = Field(default=15.0, ge=1, le=3600, description=_WATCHDOG)
    gpus_per_replica: float = Field(
        gt=0, le=16, description="GPUs of one replica: a share below 1, or a whole number (tensor parallelism)."
    )
    engine: CudaEngine = Field(default=CudaEngine(), description="Engine settings.")

    @model_validator(mode="after")
    def _placeable(self) -> Self:
        if self.gpus_per_replica > 1 and not self.gpus_per_replica.is_integer():
            raise ValueError(f"gpus_per_replica ({self.gpus_per_replica:g}) over 1 must be a whole number")
        share = self.engine.gpu_memory_utilization
        if share is not None and share > self.gpus_per_replica:
            raise ValueError(
                f"engine.gpu_memory_utilization ({share:g}) is over the replica's share of a GPU "
                f"(gpus_per_replica {self.gpus_per_replica:g})"
            )
        return self

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Whether a node of Ray with these resources, all of them free, could take one replica."""
        return resources.get("GPU", 0.0) >= self.gpus_per_replica

    @property
    def seed_speed(self) -> StepSpeed:
        """What an engine step costs until it has been measured."""
        return self.speed.as_step_speed() if self.speed else CUDA_SPEED

    @property
    def seed_cold_start_s(self) -> float:
        """Seconds to a ready replica until one was seen to start."""
        return self.cold_start_s or CUDA_COLD_START_S

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs that one replica's weights are split over."""
        return max(1, int(self.gpus_per_replica))

    @property
    def gpu_memory_utilization(self) -> float:
        """Share of each GPU's memory that one replica takes."""
        share = self.engine.gpu_memory_utilization
        return DEFAULT_GPU_MEMORY_UTILIZATION * min(1.0, self.gpus_per_replica) if share is None else share


Pool = Annotated[CpuPool | CudaPool, Field(discriminator="device")]
