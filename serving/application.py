"""A config as a Ray Serve application: one gateway deployment, and one deployment per pool."""

import pickle
from collections.abc import Mapping
from pathlib import Path

from pydantic import PrivateAttr
from ray import serve
from ray.serve import Application, Deployment
from ray.serve._private.config import DeploymentConfig
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serving.config import Config
from serving.config.model import ModelConfig
from serving.config.pool import CpuPool, CudaPool
from serving.deployments import (
    Site,
    actor_options,
    deployment_name,
    gateway_version,
    pool_version,
    replica_options,
)
from serving.gateway import termination
from serving.gateway.ingress import GatewayIngress, GatewayOptions
from serving.replica.deployment import PoolReplica

APP_NAME = "ballast"
#: Ray Serve counts only its own requests; the gateway admits, so Serve's limit is set where it never acts.
NO_SERVE_LIMIT = 1_000_000
GATEWAY_CPUS = 0.0
#: Per cent, rounded up to a whole replica: of a rollout, one is replaced at a time, and the new one comes first.
SURGE_OF_ONE = 1
#: How long Ray Serve keeps the figures for the autoscaler, and how often it takes and sends them.
LOOK_BACK_S, METRICS_INTERVAL_S = 5.0, 1.0


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
    """The application to run. Deployments whose version has not changed keep their replicas when it is deployed
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
        max_surge_percent=SURGE_OF_ONE,
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
                    **termination.ENVIRONMENT,
                }
            },
        },
    )
    return _with_version(gateway, gateway_version(config)).bind(options, pools)


def _neutral_autoscaling(least: int, most: int, initial: int | None) -> AutoscalingConfig:
    """Bounds and signal intervals for Ray Serve; what it would decide, and delay, is `serve_policy.py`'s alone.

    ``initial``: None: as many as there are, for a deployment that runs already. Ray Serve would go back to any other
    number whenever something of the deployment changes.

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


def _pool_deployment(
    name: str, config: Config, model: ModelConfig, pool: CpuPool | CudaPool, site: Site
) -> Application:
    least = pool.replicas.min if site.is_placeable(pool) else 0
    initial = None if name in site.deployed else least
    deployment = serve.deployment(
        PoolReplica,
        name=name,
        autoscaling_config=_neutral_autoscaling(0, pool.replicas.max, initial),
        max_surge_percent=SURGE_OF_ONE if site.has_room_for(pool) else 0,
        max_ongoing_requests=NO_SERVE_LIMIT,
        graceful_shutdown_timeout_s=config.server.shutdown_grace_s + 10,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=1,
        health_check_timeout_s=30,
        ray_actor_options=actor_options(pool),
    )
    versioned = _with_version(deployment, pool_version(config, model, pool))
    return versioned.bind(replica_options(config, model, pool, site))


class _Versioned(DeploymentConfig):
    """A deployment's config with a version of its own.

    Ray 2.60 gives all deployments of a declared application one version, a hash of its arguments: any change of the
    config would restart every replica. It sets that version last of all before it serialises the config.
    """

    _own_version: str = PrivateAttr()

    def to_proto_bytes(self) -> bytes:
        self.version = self._own_version
        data: bytes = super().to_proto_bytes()
        return data


def _with_version(deployment: Deployment, version: str) -> Deployment:
    """``deployment``, whose replicas Ray Serve replaces when ``version`` is another than theirs."""
    config = _Versioned.model_construct(**dict(deployment._deployment_config))
    config._own_version = version
    deployment._deployment_config = config
    return deployment
