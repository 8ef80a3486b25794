"""A config as a Ray Serve application: one gateway deployment, and one deployment per pool."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from ray import serve
from ray.serve import Application

from serving.config import Config
from serving.config.model import ModelConfig
from serving.config.pool import CpuPool, CudaPool
from serving.gateway.ingress import GatewayIngress, GatewayOptions
from serving.replica.deployment import PoolReplica
from serving.replica.options import ReplicaOptions

APP_NAME = "ballast"
#: Ray Serve counts only its own requests; the gateway admits, so Serve's limit is set where it never acts.
NO_SERVE_LIMIT = 1_000_000
GATEWAY_CPUS = 0.0


@dataclass(frozen=True, slots=True)
class Site:
    """What the running cluster adds to the config: the folder for sockets, and the secret between gateways and
    replicas.
    """

    runtime_dir: Path
    secret: bytes
    engine: str = "vllm"
    engine_args: Mapping[str, Any] | None = None


def build_application(config: Config, site: Site) -> Application:
    """The application to run. Deployments whose options have not changed keep their replicas when it is deployed
    again.
    """
    pools, deployments = [], []
    for model in config.models:
        for pool in model.pools:
            name = deployment_name(model.name, pool.name)
            deployments.append((model.name, pool.name, name))
            pools.append(_pool_deployment(name, config, model, pool, site))
    options = GatewayOptions(config, APP_NAME, tuple(deployments), site.secret)
    gateway = serve.deployment(
        GatewayIngress,
        name="gateway",
        num_replicas=config.server.gateways,
        max_ongoing_requests=NO_SERVE_LIMIT,
        graceful_shutdown_timeout_s=config.server.shutdown_grace_s + 5,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        health_check_timeout_s=10,
        ray_actor_options={
            "num_cpus": GATEWAY_CPUS,
            # Chunks go from the replica's socket to the client's on one loop; a thread hop per chunk would cost more
            # than the rest.
            "runtime_env": {
                "env_vars": {
                    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
                    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.edge.middleware.middlewares",
                    "PROMETHEUS_MULTIPROC_DIR": str(site.runtime_dir / "metrics"),
                }
            },
        },
    )
    return gateway.bind(options, pools)


def deployment_name(model: str, pool: str) -> str:
    """Ray Serve's name of a pool; model names may contain characters that Ray's file names may not."""
    safe = "".join(char if char.isalnum() or char in "-_" else "-" for char in model)
    return f"{safe}-{hashlib.sha256(model.encode()).hexdigest()[:6]}.{pool}"


def _pool_deployment(
    name: str, config: Config, model: ModelConfig, pool: CpuPool | CudaPool, site: Site
) -> Application:
    options = ReplicaOptions(
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
        log_level=config.server.log_level,
        log_path=str(config.server.log_path),
        grammar_compile_s=config.limits.grammar_compile_s,
    )
    return serve.deployment(
        PoolReplica,
        name=name,
        num_replicas=pool.replicas.min,
        max_ongoing_requests=NO_SERVE_LIMIT,
        graceful_shutdown_timeout_s=config.server.shutdown_grace_s + 10,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=1,
        health_check_timeout_s=30,
        ray_actor_options=_actor_options(pool),
    ).bind(options)


def _actor_options(pool: CpuPool | CudaPool) -> dict[str, Any]:
    if isinstance(pool, CudaPool):
        return {"num_cpus": 1, "num_gpus": pool.gpus_per_replica}
    env = {
        # vLLM's own binding gives every engine of a node the same cores; the kernel's scheduler does better.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(pool.num_threads),
        # On CPU vLLM 0.29 compiles ahead of time, fails to load the result at every start, and compiles again.
        "VLLM_USE_AOT_COMPILE": "0",
    }
    return {"num_cpus": pool.cpus_per_replica, "runtime_env": {"env_vars": env}}


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
    }
    if isinstance(pool, CpuPool):
        args["kv_cache_memory_bytes"] = pool.engine.kv_cache_bytes
        args["worker_cls"] = "serving.engine.cpu_worker.SeededCpuWorker"
        args["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    else:
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
    parts = model.model_dump(mode="json", exclude={"pools", "cost", "slo", "aliases"})
    parts["engine"] = pool.engine.model_dump(mode="json")
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
