"""What a config makes of its deployments, as plain values: what each replica is started with, and a digest of that by
which Ray Serve, and `ballast apply`, know which replicas a change of the config restarts. Imports no Ray.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from serving.config import Config
from serving.config.model import ModelConfig
from serving.config.pool import CpuPool, CudaPool
from serving.replica.options import ReplicaOptions
from serving.tenancy.private_files import create_private_file

FLEET_POLICY = "serving.autoscaler.serve_policy:FleetPolicy"
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Site:
    """What the running cluster adds to the config: the folder for sockets, and the secret between gateways and
    replicas.
    """

    runtime_dir: Path
    secret: bytes
    engine: str = "vllm"
    engine_args: Mapping[str, Any] | None = None
    node_resources: tuple[Mapping[str, float], ...] = ()
    """What Ray's nodes have."""
    spare_resources: Mapping[str, float] = field(default_factory=dict)
    """What of that nobody has taken: room for a new replica beside the one that it replaces."""
    policy: str = FLEET_POLICY
    deployed: frozenset[str] = frozenset()
    """Names of the deployments that run already."""

    def is_placeable(self, pool: CpuPool | CudaPool) -> bool:
        """Whether a node could take a replica of ``pool``. One that cannot be placed must not hold the others up."""
        return any(pool.fits(resources) for resources in self.node_resources)

    def has_room_for(self, pool: CpuPool | CudaPool) -> bool:
        """Whether one replica of ``pool`` more than there are would find its place now."""
        return pool.fits(self.spare_resources)

    def write(self, config: Config) -> Path:
        """Hand ``config`` and this to the process in which Ray Serve builds the application."""
        content = pickle.dumps((config, self))
        path = self.runtime_dir / f"site-{hashlib.sha256(content).hexdigest()[:12]}.pickle"
        if not path.exists():
            create_private_file(path, content)
        return path


def config_version(config: Config) -> str:
    """Twelve hex digits over the whole config."""
    return _digest(config.model_dump(mode="json"))


def gateway_version(config: Config) -> str:
    """Twelve hex digits over what a gateway reads of the config: another one takes new gateways."""
    parts = config.model_dump(mode="json", exclude={"autoscaler": True, "models": {"__all__": {"cost"}}})
    for model in parts["models"]:
        model["pools"] = [{"name": pool["name"], "fallback": pool["fallback"]} for pool in model["pools"]]
    return _digest(parts)


def pool_version(config: Config, model: ModelConfig, pool: CpuPool | CudaPool) -> str:
    """Twelve hex digits over what a replica of ``pool`` reads of the config: another one takes new replicas."""
    return _digest([asdict(replica_options(config, model, pool, Site(Path(), b""))), actor_options(pool)])


def replaced_without_room(
    old: Config, new: Config, spare: Mapping[str, float], num_running: Mapping[tuple[str, str], int]
) -> list[tuple[str, str]]:
    """Pools (model, pool) whose new replicas would find no place even where an old one has left: to stop one for them
    would only make the pool smaller.

    ``spare`` is what Ray's nodes have left; ``num_running`` counts the replicas of each pool.
    """
    former = {(model.name, pool.name): (model, pool) for model in old.models for pool in model.pools}
    found = []
    for model in new.models:
        for pool in model.pools:
            place = (model.name, pool.name)
            was = former.get(place)
            if was is None or not num_running.get(place) or pool_version(old, *was) == pool_version(new, model, pool):
                continue
            options = actor_options(was[1])
            freed = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0.0)}
            if not pool.fits({name: spare.get(name, 0.0) + amount for name, amount in freed.items()}):
                found.append(place)
    return found


def _digest(parts: object) -> str:
    return hashlib.sha256(orjson.dumps(parts, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_DIGITS]


def deployment_name(model: str, pool: str) -> str:
    """Ray Serve's name of a pool; model names may contain characters that Ray's file names may not."""
    safe = "".join(char if char.isalnum() or char in "-_" else "-" for char in model)
    return f"{safe}-{hashlib.sha256(model.encode()).hexdigest()[:6]}.{pool}"


def replica_options(config: Config, model: ModelConfig, pool: CpuPool | CudaPool, site: Site) -> ReplicaOptions:
    """What every replica of ``pool`` is started with."""
    return ReplicaOptions(
        model=model.name,
        served_names=model.names,
        pool=pool.name,
        source=model.source,
        engine=site.engine,
        engine_args=engine_args(config, model, pool) if site.engine_args is None else site.engine_args,
        runtime_dir=str(site.runtime_dir),
        secret=site.secret,
        drain_s=config.server.shutdown_grace_s,
        watchdog_s=pool.watchdog_s,
        version=_version(model, pool),
        model_version=_digest(_model_parts(model)),
        log_level=config.server.log_level,
        log_path=str(config.server.log_path),
        grammar_compile_s=config.limits.grammar_compile_s,
        speed=pool.seed_speed,
        speed_steps=pool.seed_steps,
        # What the node's zygote has imported are the server's own packages.
        is_forked=isinstance(pool, CpuPool) and pool.python is None and site.engine != "scripted",
    )


def actor_options(pool: CpuPool | CudaPool) -> dict[str, Any]:
    """With an environment of its own, a replica gets a process of its own, and that process's age is the start's."""
    runtime_env: dict[str, Any] = {"env_vars": _environment(pool)}
    if pool.python is not None:
        runtime_env["py_executable"] = str(pool.python)
    if isinstance(pool, CudaPool):
        return {"num_cpus": 1, "num_gpus": pool.gpus_per_replica, "runtime_env": runtime_env}
    return {"num_cpus": pool.cpus_per_replica, "runtime_env": runtime_env}


def _environment(pool: CpuPool | CudaPool) -> dict[str, str]:
    if isinstance(pool, CudaPool):
        return {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}  # as vLLM would decide itself in Ray's worker process
    return {
        # vLLM's own binding gives every engine of a node the same cores; the kernel's scheduler does better.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(pool.num_threads),
        # On CPU vLLM 0.29 compiles ahead of time, fails to load the result at every start, and compiles again.
        "VLLM_USE_AOT_COMPILE": "0",
    }


def engine_args(config: Config, model: ModelConfig, pool: CpuPool | CudaPool) -> dict[str, Any]:
    """Arguments of vLLM's ``AsyncEngineArgs`` and server for one pool; what the config leaves open is vLLM's
    default.
    """
    engine = pool.engine
    args: dict[str, Any] = {
        "revision": model.revision,
        "max_model_len": model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "dtype": engine.dtype,
        "quantization": engine.quantization,
        "load_format": engine.load_format,
        "block_size": engine.block_size,
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "enable_chunked_prefill": engine.enable_chunked_prefill,
        "seed": engine.seed,
        "max_logprobs": max(config.limits.max_top_logprobs, config.limits.max_logprobs),
        "chat_template": str(model.chat_template) if model.chat_template else None,
        "runner": "pooling" if model.task == "embed" else "auto",
        "reasoning_parser": model.reasoning_parser,
        "tool_call_parser": model.tool_call_parser,
        "enable_auto_tool_choice": model.tool_call_parser is not None,
        "additional_config": {"ballast_kernels": engine.kernels},
    }
    if isinstance(pool, CpuPool):
        args["kv_cache_memory_bytes"] = pool.engine.kv_cache_bytes
        args["worker_cls"] = "serving.engine.cpu_worker.BallastCpuWorker"
        args["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    else:
        args["worker_cls"] = "serving.engine.gpu_worker.BallastGpuWorker"
        args["tensor_parallel_size"] = pool.tensor_parallel_size
        args["gpu_memory_utilization"] = pool.gpu_memory_utilization
        if pool.tensor_parallel_size > 1:
            args["distributed_executor_backend"] = "mp"
    if config.limits.max_output_tokens is not None:
        args["override_generation_config"] = {"max_new_tokens": config.limits.max_output_tokens}
    args.update(engine.extra)
    return {name: value for name, value in args.items() if value is not None}


def _version(model: ModelConfig, pool: CpuPool | CudaPool) -> str:
    """Twelve hex digits over everything that can change an answer."""
    return _digest({**_model_parts(model), "engine": pool.engine.model_dump(mode="json")})


def _model_parts(model: ModelConfig) -> dict[str, object]:
    """What of it changes answers, whatever the pool."""
    return model.model_dump(mode="json", exclude={"pools", "cost", "slo", "aliases"})
