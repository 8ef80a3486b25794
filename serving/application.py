"""A config as a Ray Serve application: one gateway deployment, and one deployment per pool."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serving.config import Config
from serving.config.model import ModelConfig
from serving.config.pool import CpuPool, CudaPool
from serving.gateway.ingress import GatewayIngress, GatewayOptions
from serving.replica.deployment import PoolReplica
from serving.replica.options import ReplicaOptions
from serving.tenancy.private_files import create_private_file

APP_NAME = "ballast"
FLEET_POLICY = "serving.autoscaler.serve_policy:FleetPolicy"
#: Ray Serve counts only its own requests; the gateway admits, so Serve's limit is set where it never acts.
NO_SERVE_LIMIT = 1_000_000
GATEWAY_CPUS = 0.0
#: How long Ray Serve keeps the figures for the autoscaler, and how often it takes and sends them.
LOOK_BACK_S, METRICS_INTERVAL_S = 5.0, 1.0


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
    policy: str = FLEET_POLICY

    def is_placeable(self, pool: CpuPool | CudaPool) -> bool:
        """Whether a node could take a replica of ``pool``. One that cannot be placed must not hold the others up."""
        return any(pool.fits(resources) for resources in self.node_resources)

    def write(self, config: Config) -> Path:
        """Hand ``config`` and this to the process in which Ray Serve builds the application."""
        content = pickle.dumps((config, self))
        path = self.runtime_dir / f"site-{hashlib.sha256(content).hexdigest()[:12]}.pickle"
        if not path.exists():
            create_private_file(path, content)
        return path


def build(args: Mapping[str, str]) -> Application:
    """Called by Ray Serve, in a process of its own, with what `deploy_schema` says."""
    config, site = pickle.loads(Path(args["site"]).read_bytes())  # noqa: S301 - our own file in our private folder
    return build_application(config, site)


def deploy_schema(config: Config, site: Site) -> ServeDeploySchema:
    """What Ray Serve is to run. Only an application that is declared like this may have a policy of its own."""
    pools = [(model.name, pool.name) for model in config.models for pool in model.pools]
    deployments = [[model, pool, deployment_name(model, pool)] for model, pool in pools]
    policy = {
        "policy_function": site.policy,
        "policy_kwargs": {
            "config": config.model_dump(mode="json"),
            "deployments": deployments,
            "folder": str(config.server.decisions_dir),
        },
    }
    application = ServeApplicationSchema(
        name=APP_NAME,
        route_prefix="/",
        import_path="serving.application:build",
        args={"site": str(site.write(config))},
        autoscaling_policy=policy,
    )
    return ServeDeploySchema(applications=[application])


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
    options = GatewayOptions(config, APP_NAME, tuple(deployments), site.secret, site.runtime_dir)
    gateway = serve.deployment(
        GatewayIngress,
        name="gateway",
        autoscaling_config=_neutral_autoscaling(*[config.server.gateways] * 3),
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


def _neutral_autoscaling(least: int, most: int, initial: int) -> AutoscalingConfig:
    """Bounds and signal intervals for Ray Serve; what it would decide, and delay, is `serve_policy.py`'s alone.

    The gateways' number is fixed; they have one because only deployments with one are seen, and heard, by a policy.
    """
    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        initial_replicas=initial,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        downscale_to_zero_delay_s=0.0,
        upscaling_factor=1.0,
        downscaling_factor=1.0,
        look_back_period_s=LOOK_BACK_S,
        metrics_interval_s=METRICS_INTERVAL_S,  # deprecated, and still what Ray 2.60 goes by
    )


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
        speed=pool.seed_speed,
        # What the node's zygote has imported are the server's own packages.
        is_forked=isinstance(pool, CpuPool) and pool.python is None and site.engine != "scripted",
    )
    return serve.deployment(
        PoolReplica,
        name=name,
        autoscaling_config=_neutral_autoscaling(
            0, pool.replicas.max, pool.replicas.min if site.is_placeable(pool) else 0
        ),
        max_ongoing_requests=NO_SERVE_LIMIT,
        graceful_shutdown_timeout_s=config.server.shutdown_grace_s + 10,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=1,
        health_check_timeout_s=30,
        ray_actor_options=_actor_options(pool),
    ).bind(options)


def _actor_options(pool: CpuPool | CudaPool) -> dict[str, Any]:
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
    parts = model.model_dump(mode="json", exclude={"pools", "cost", "slo", "aliases"})
    parts["engine"] = pool.engine.model_dump(mode="json")
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
