"""The ``engine`` section of a pool: the engine settings we answer for, typed per device, and ``extra`` for the rest."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from serving.config.extra import permitted
from serving.config.section import Section


def _extra_key(key: str) -> str:
    if key in CpuEngine.model_fields or key in CudaEngine.model_fields:
        raise ValueError(f"not taken here: {key} is a field of `engine` itself")
    return permitted(key)


class EngineConfig(Section):
    """Engine settings of both devices. Fields that are null are left to vLLM."""

    max_num_seqs: int = Field(default=64, ge=1, le=65_536, description="Sequences the engine runs at once.")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=32, le=4_194_304, description="Tokens per engine step, prefill and decode together."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Number format of weights and KV cache; auto: the model's own."
    )
    quantization: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")] | None = Field(
        default=None, description="vLLM's name of a quantization method; null: what the model folder says."
    )
    load_format: Literal["safetensors", "fastsafetensors", "runai_streamer", "dummy"] = Field(
        default="safetensors",
        description="How weights are read. Pickled weights are not taken; dummy makes random ones.",
    )
    block_size: Literal[16, 32, 64, 128] | None = Field(default=None, description="Tokens per KV cache block.")
    enforce_eager: bool = Field(
        default=False, description="Skip torch.compile and CUDA graphs: quicker start, slower tokens."
    )
    enable_prefix_caching: bool = Field(default=True, description="Reuse the KV cache of a prompt's known beginning.")
    enable_chunked_prefill: bool = Field(default=True, description="Split long prompts over several steps.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of the engine's own randomness.")
    kernels: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Ballast's own sampler: auto (CPU engines, where it can be used), on (no start without it), off.",
    )
    extra: Mapping[Annotated[str, AfterValidator(_extra_key)], JsonValue] = Field(
        default={}, description="Other arguments of vLLM's AsyncEngineArgs, checked against that class at start."
    )


class CpuEngine(EngineConfig):
    """Engine settings of a CPU replica."""

    kv_cache_gib: float = Field(
        default=1.0, gt=0, le=4096, description="GiB of memory for the KV cache. Taken whole at start, per replica."
    )

    @property
    def kv_cache_bytes(self) -> int:
        """vLLM's ``kv_cache_memory_bytes``; its older VLLM_CPU_KVCACHE_SPACE takes whole GiB only."""
        return int(self.kv_cache_gib * 2**30)


class CudaEngine(EngineConfig):
    """Engine settings of a GPU replica."""

    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each GPU's memory the engine takes; null: 0.9 of the replica's share.",
    )
