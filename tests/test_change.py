"""What a changed config does to a running server: keys, pools, gateways, cost, and what only a restart can change."""

from pathlib import Path
from typing import Any

import pytest

from serving.change import Change, plan_change, with_removed_pools
from serving.change_text import change_as_json, render_change
from serving.config import Config
from serving.deployments import config_version, replaced_without_room
from serving.errors import ConfigError

Json = dict[str, Any]


def pool(name: str = "cpu", **fields: object) -> Json:
    base: Json = {"name": name, "device": "cpu", "cpus_per_replica": 1.0, "usd_per_hour": 0.5}
    return base | {"replicas": {"min": 1, "max": 2}} | fields


def model(*pools: Json, name: str = "demo", **fields: object) -> Json:
    return {"name": name, "source": "owner/name", "pools": list(pools or (pool(),))} | fields


def config(*models: Json, **sections: object) -> Config:
    data = {"models": list(models or (model(),)), **sections}
    return Config.model_validate(data, context={"base_dir": Path("/")})


def fates(change: Change) -> dict[str, str]:
    return {f"{each.model}/{each.pool}": each.fate for each in change.pools}


def test_equal_configs_change_nothing() -> None:
    change = plan_change(config(), config())
    assert change.is_empty
    assert not change.replaces_gateways
    assert fates(change) == {"demo/cpu": "kept"}
    assert render_change(change) == f"nothing to change: config {config_version(config())} is in force"


def test_a_config_that_went_through_json_is_the_same_config() -> None:
    """`ballast apply` compares what it has read from a file with what the server was told over a socket."""
    told = config(model(pool(engine={"extra": {"a": [1, {"b": None}]}}), aliases=["small"]))
    heard = Config.model_validate(told.model_dump(mode="json"))
    assert plan_change(told, heard).is_empty
    assert config_version(told) == config_version(heard)


def test_the_order_of_models_and_pools_is_no_change() -> None:
    one, two = model(pool("a"), pool("b")), model(name="other")
    turned = config(two, model(pool("b"), pool("a")))
    assert plan_change(config(one, two), turned).is_empty


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        (pool(engine={"max_num_seqs": 8}), "engine.max_num_seqs"),
        (pool(cpus_per_replica=2.0), "cpus_per_replica"),
        (pool(watchdog_s=9.0), "watchdog_s"),
    ],
)
def test_what_a_replica_is_started_with_replaces_it_and_no_gateway(changed: Json, path: str) -> None:
    change = plan_change(config(), config(model(changed)))
    assert [key.path for key in change.keys] == [f"models[demo].pools[cpu].{path}"]
    assert fates(change) == {"demo/cpu": "replaced"}
    assert not change.replaces_gateways


@pytest.mark.parametrize("changed", [pool(usd_per_hour=0.7), pool(replicas={"min": 2, "max": 3}), pool(cold_start_s=9)])
def test_what_only_the_autoscaler_reads_replaces_nothing(changed: Json) -> None:
    change = plan_change(config(), config(model(changed)))
    assert not change.is_empty
    assert fates(change) == {"demo/cpu": "kept"}
    assert not change.replaces_gateways


@pytest.mark.parametrize(
    "new",
    [
        config(limits={"max_queued_requests": 7}),
        config(model(slo={"ttft_s": 1.0})),
        config(model(pool(fallback={"max_prompt_tokens": 9}))),
        config(server={"keep_alive_s": 20.0}),
    ],
)
def test_what_only_gateways_read_replaces_them_and_no_replica(new: Config) -> None:
    change = plan_change(config(), new)
    assert change.replaces_gateways
    assert fates(change) == {"demo/cpu": "kept"}
    assert change.needs_restart == ()


def test_a_limit_that_engines_know_too_replaces_all() -> None:
    change = plan_change(config(), config(limits={"max_output_tokens": 64}))
    assert change.replaces_gateways
    assert fates(change) == {"demo/cpu": "replaced"}


def test_one_pool_of_two_is_replaced_alone() -> None:
    old = config(model(pool("a"), pool("b")))
    new = config(model(pool("a"), pool("b", engine={"seed": 7})))
    assert fates(plan_change(old, new)) == {"demo/a": "kept", "demo/b": "replaced"}


def test_pools_and_models_come_and_go() -> None:
    old = config(model(pool("a"), pool("b")), model(name="leaves"))
    new = config(model(pool("a"), pool("c")), model(name="comes"))
    change = plan_change(old, new)
    assert fates(change) == {
        "demo/a": "kept", "demo/b": "removed", "leaves/cpu": "removed", "demo/c": "added", "comes/cpu": "added",
    }  # fmt: skip
    assert change.replaces_gateways
    lines = render_change(change).splitlines()
    for line in ("  - models[demo].pools[b]", "  + models[demo].pools[c]", "  - models[leaves]", "  + models[comes]"):
        assert lines.count(line) == 1
    assert not any("models[comes].pools" in line for line in lines), "what comes whole is told in one line"


def test_the_cost_is_that_of_the_smallest_and_the_largest_fleet_within_the_ceiling() -> None:
    new = config(model(pool(replicas={"min": 2, "max": 8}), cost={"max_usd_per_hour": 3.0}))
    change = plan_change(config(), new)
    assert change.old_usd_per_hour == (0.5, 1.0)
    assert change.new_usd_per_hour == (1.0, 3.0)
    assert render_change(change).endswith("cost 0.50 to 1.00 USD an hour -> 1.00 to 3.00")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", "0.0.0.0"),
        ("port", 9000),
        ("admin_port", 9001),
        ("state_dir", "/elsewhere"),
        ("gateways", 2),
        ("max_connections", 100),
        ("shutdown_grace_s", 5.0),
        ("log_level", "debug"),
    ],
)
def test_a_key_that_is_given_at_start_needs_a_restart(key: str, value: object) -> None:
    change = plan_change(config(), config(server={key: value}))
    assert [each.path for each in change.needs_restart] == [f"server.{key}"]


def test_every_key_that_needs_a_restart_is_named_at_once() -> None:
    change = plan_change(config(), config(model(pool(usd_per_hour=1.0)), server={"port": 9000, "gateways": 2}))
    with pytest.raises(ConfigError) as refused:
        change.check_is_live("ballast.yaml")
    assert {problem.path for problem in refused.value.problems} == {"server.port", "server.gateways"}
    assert "needs a restart: the server runs with 8000" in str(refused.value)


def test_a_list_that_changes_within_is_a_change() -> None:
    change = plan_change(config(model(aliases=["a"])), config(model(aliases=["b"])))
    assert [(key.old, key.new) for key in change.keys] == [('["a"]', '["b"]')]


def test_pools_that_go_serve_on_beside_those_that_come() -> None:
    old = config(model(pool("a"), pool("b")), model(name="leaves"))
    new = config(model(pool("a", usd_per_hour=9.0), pool("c")))
    between = with_removed_pools(old, new)
    assert [(each.name, each.usd_per_hour) for each in between.models[0].pools] == [("a", 9.0), ("c", 0.5), ("b", 0.5)]
    assert [each.name for each in between.models] == ["demo"]
    assert with_removed_pools(new, new) is new


def test_a_script_gets_every_field() -> None:
    found = change_as_json(plan_change(config(), config(limits={"max_n": 2})))
    assert found["keys"] == ({"path": "limits.max_n", "old": "8", "new": "2"},)
    assert found["replaces_gateways"] is True


@pytest.mark.parametrize(
    ("cpus", "spare", "num_running", "is_stuck"),
    [(2.0, 0.5, 1, True), (2.0, 1.0, 1, False), (2.0, 0.5, 0, False), (1.0, 0.0, 1, False)],
)
def test_a_replica_is_not_stopped_for_one_that_finds_no_place(
    cpus: float, spare: float, num_running: int, is_stuck: bool
) -> None:
    new = config(model(pool(cpus_per_replica=cpus), pool("new", cpus_per_replica=64.0)))
    found = replaced_without_room(config(), new, {"CPU": spare}, {("demo", "cpu"): num_running})
    assert found == ([("demo", "cpu")] if is_stuck else [])
