"""What Ray Serve is told to run."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own

NODE = {"CPU": 4.0}


def site(folder: Path, *nodes: dict[str, float]) -> Any:
    from serving.deployments import Site

    return Site(folder, b"secret", node_resources=nodes or (NODE,))


CPU = {"name": "cpu", "device": "cpu", "cpus_per_replica": 1.0, "usd_per_hour": 0.1, "replicas": {"min": 1, "max": 3}}
CUDA = {"name": "gpu", "device": "cuda", "gpus_per_replica": 1.0, "usd_per_hour": 2.0}


def config(given: dict[str, object] = CPU, **pool: object) -> Any:
    from serving.config import Config

    model = {"name": "demo", "source": "owner/name", "pools": [given | pool]}
    return Config.model_validate({"models": [model]}, context={"base_dir": Path("/")})


def deployments(config: Any, site: Any) -> dict[str, Any]:
    """Ray Serve's deployments by name."""
    from ray.serve._private.build_app import build_app

    from serving.application import build_application

    return {found.name: found for found in build_app(build_application(config, site), name="ballast").deployments}


def pool_of(config: Any, site: Any) -> Any:
    return next(found for name, found in deployments(config, site).items() if name != "gateway")


def test_rays_own_autoscaling_is_neutral(tmp_path: Path) -> None:
    scaling = pool_of(config(), site(tmp_path))._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (0, 1, 3)
    assert scaling.upscale_delay_s == scaling.downscale_delay_s == scaling.downscale_to_zero_delay_s == 0.0
    assert scaling.get_upscaling_factor() == scaling.get_downscaling_factor() == 1.0


def test_a_pool_that_no_node_can_take_is_not_waited_for(tmp_path: Path) -> None:
    assert pool_of(config(CUDA), site(tmp_path))._deployment_config.autoscaling_config.initial_replicas == 0
    there = site(tmp_path, {"CPU": 4.0, "GPU": 1.0})
    assert pool_of(config(CUDA), there)._deployment_config.autoscaling_config.initial_replicas == 1


def test_a_pool_that_runs_keeps_the_replicas_that_it_has(tmp_path: Path) -> None:
    name = pool_of(config(), site(tmp_path)).name
    running = replace(site(tmp_path), deployed=frozenset({name}))
    assert pool_of(config(), running)._deployment_config.autoscaling_config.initial_replicas is None


def test_a_pool_may_have_a_python_of_its_own(tmp_path: Path) -> None:
    options = pool_of(config(python=sys.executable), site(tmp_path))._replica_config.ray_actor_options
    assert options["runtime_env"]["py_executable"] == sys.executable
    assert "py_executable" not in pool_of(config(), site(tmp_path))._replica_config.ray_actor_options["runtime_env"]


def test_the_number_of_gateways_is_fixed(tmp_path: Path) -> None:
    scaling = deployments(config(), site(tmp_path))["gateway"]._deployment_config.autoscaling_config
    assert scaling.min_replicas == scaling.max_replicas == scaling.initial_replicas == 1


def test_what_is_declared_says_all_that_the_policy_needs_in_json(tmp_path: Path) -> None:
    from serving.application import build, deploy_schema

    [application] = deploy_schema(config(), site(tmp_path)).applications
    kwargs = application.autoscaling_policy["policy_kwargs"]
    assert json.loads(json.dumps(kwargs)) == kwargs
    assert kwargs["deployments"][0][:2] == ["demo", "cpu"]
    assert build(application.args) is not None


def test_another_config_is_another_version(tmp_path: Path) -> None:
    """Ray Serve builds the application anew only when its arguments differ."""
    from serving.application import deploy_schema

    first, same, other = (
        deploy_schema(each, site(tmp_path)).applications[0].args
        for each in (config(), config(), config(usd_per_hour=9.0))
    )
    assert first == same != other


def test_only_its_owner_may_read_the_secret(tmp_path: Path) -> None:
    path = site(tmp_path).write(config())
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.engine
@pytest.mark.parametrize("given", [CPU, CUDA], ids=["cpu", "cuda"])
def test_the_worker_that_an_engine_is_told_to_use_is_there_and_is_told_of_the_kernels(given: dict[str, object]) -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.worker.worker_base import WorkerBase

    from serving.deployments import engine_args

    made = config(given, engine={"kernels": "on"})
    [model] = made.models
    args = engine_args(made, model, model.pools[0])
    assert issubclass(resolve_obj_by_qualname(args["worker_cls"]), WorkerBase)
    assert args["additional_config"] == {"ballast_kernels": "on"}


def versions(config: Any, site: Any) -> dict[str, str]:
    """What Ray's controller gets as each deployment's version, by the way it gets there."""
    from ray.serve._private.config import DeploymentConfig
    from ray.serve.generated.serve_pb2 import DeploymentConfig as Message

    found = {}
    for name, each in deployments(config, site).items():
        each._deployment_config.version = "Ray's, over all arguments"
        sent = each._deployment_config.to_proto_bytes()
        found[name] = DeploymentConfig.from_proto(Message.FromString(sent)).version
    return found


def test_only_what_a_change_of_the_config_reaches_gets_another_version(tmp_path: Path) -> None:
    before = versions(config(), site(tmp_path))
    assert len(before) == 2
    assert versions(config(replicas={"min": 2, "max": 3}, usd_per_hour=9.0), site(tmp_path)) == before
    after = versions(config(engine={"max_num_seqs": 7}), site(tmp_path))
    assert {name for name in before if before[name] != after[name]} == set(before) - {"gateway"}


def test_a_new_replica_comes_before_the_old_one_goes_where_there_is_room(tmp_path: Path) -> None:
    def surge(spare: dict[str, float]) -> int:
        return int(
            pool_of(config(), replace(site(tmp_path), spare_resources=spare))._deployment_config.max_surge_percent
        )

    assert surge({"CPU": 1.0}) > 0
    assert surge({"CPU": 0.5}) == 0
    assert deployments(config(), site(tmp_path))["gateway"]._deployment_config.max_surge_percent > 0
