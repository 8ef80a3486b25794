"""What would run where, and what stands in the way."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.spec import ModelFolderError, ModelSpec
from serving.config import Config, load_config, parse_config
from serving.machine import Gpu, Machine
from serving.plan import BASE_OVERHEAD_BYTES, CPU_REPLICA_OVERHEAD_BYTES, CUDA_OVERHEAD_BYTES, Plan, plan, read_specs
from serving.plan_text import plan_as_json, render_plan

ROOT = Path(__file__).parent.parent
GB = 10**9
GIB = 2**30
GPU = Gpu(name="H200", memory_bytes=140 * GIB, free_memory_bytes=139 * GIB, driver_version="580")
MACHINE = Machine(num_cpus=8, total_memory_bytes=32 * GB, available_memory_bytes=30 * GB, free_disk_bytes=50 * GB)
SPEC = ModelSpec(
    architecture="LlamaForCausalLM",
    dtype="bfloat16",
    weight_bytes=8_000_000,
    num_float_parameters=4_000_000,
    packed_bytes=0,
    num_hidden_layers=8,
    kv_elements_per_token=2048,
    max_position_embeddings=2048,
    has_chat_template=True,
)
CPU_POOL: Mapping[str, object] = {"name": "cpu", "device": "cpu", "cpus_per_replica": 1, "usd_per_hour": 0.1}
DEAR_POOL: Mapping[str, object] = CPU_POOL | {"name": "dear", "usd_per_hour": 5, "replicas": {"min": 0}}
CUDA_POOL: Mapping[str, object] = {"name": "gpu", "device": "cuda", "gpus_per_replica": 1, "usd_per_hour": 2.5}


def config_of(*pools: Mapping[str, object], server: Mapping[str, object] = {}, **model: object) -> Config:
    data = {"server": server, "models": [{"name": "m", "source": "models", "pools": pools} | model]}
    return parse_config(json.dumps(data), ROOT)


def plan_of(config: Config, machine: Machine = MACHINE, spec: ModelSpec | ModelFolderError | None = SPEC) -> Plan:
    return plan(config, machine, {"m": spec} if spec else {})


def findings_of(planned: Plan) -> list[tuple[str, str]]:
    return [(finding.severity, finding.path) for finding in planned.findings]


# ------------------------------------------------------------------------------------------------ sizes and prices


def test_a_cpu_replica_takes_weights_kv_cache_and_processes() -> None:
    (pool,) = plan_of(config_of(CPU_POOL | {"engine": {"kv_cache_gib": 2}})).pools
    assert pool.memory_bytes == 8_000_000 + 2 * GIB + CPU_REPLICA_OVERHEAD_BYTES
    assert (pool.kv_cache_bytes, pool.kv_cache_tokens) == (2 * GIB, 2 * GIB // 4096)


def test_a_kv_cache_may_be_a_fraction_of_a_gib() -> None:
    (pool,) = plan_of(config_of(CPU_POOL | {"engine": {"kv_cache_gib": 0.5}})).pools
    assert pool.kv_cache_bytes == GIB // 2


def test_a_wider_number_format_doubles_weights_and_halves_the_tokens_that_fit() -> None:
    (pool,) = plan_of(config_of(CPU_POOL | {"engine": {"dtype": "float32"}})).pools
    assert pool.weight_bytes == 16_000_000
    assert pool.kv_cache_tokens == GIB // 8192


def test_a_gpu_replicas_kv_cache_is_what_its_share_leaves() -> None:
    machine = replace(MACHINE, gpus=(GPU, GPU))
    pool = CUDA_POOL | {"gpus_per_replica": 2, "engine": {"gpu_memory_utilization": 0.5}}
    (planned,) = plan_of(config_of(pool), machine).pools
    assert planned.memory_bytes == 2 * 70 * GIB
    assert planned.kv_cache_bytes == 2 * 70 * GIB - 8_000_000 - 2 * CUDA_OVERHEAD_BYTES


def test_without_a_gpu_to_divide_a_gpu_pool_has_no_sizes() -> None:
    (pool,) = plan_of(config_of(CUDA_POOL | {"replicas": {"min": 0}})).pools
    assert (pool.memory_bytes, pool.kv_cache_bytes, pool.kv_cache_tokens) == (None, None, None)


def test_the_context_is_the_configs_or_the_models_own() -> None:
    assert plan_of(config_of(CPU_POOL)).models[0].max_model_len == 2048
    assert plan_of(config_of(CPU_POOL, max_model_len=100)).models[0].max_model_len == 100
    assert plan_of(config_of(CPU_POOL), spec=None).models[0].max_model_len is None


def test_the_cost_range_spans_the_fleets_within_the_ceiling() -> None:
    pools = [CPU_POOL | {"replicas": {"min": 1, "max": 2}}, CUDA_POOL | {"replicas": {"min": 0, "max": 4}}]
    assert plan_of(config_of(*pools)).usd_per_hour == pytest.approx((0.1, 10.2))
    assert plan_of(config_of(*pools, cost={"max_usd_per_hour": 5})).usd_per_hour == pytest.approx((0.1, 5))


def test_the_smallest_fleet_counts_min_replicas_and_the_base_of_each_gateway() -> None:
    pools = [CPU_POOL | {"cpus_per_replica": 1.5, "replicas": {"min": 2, "max": 9}}, CUDA_POOL]
    planned = plan_of(config_of(*pools, server={"gateways": 2}), replace(MACHINE, gpus=(GPU,)))
    assert (planned.min_cpus, planned.min_gpus) == (3, 1)
    assert planned.pools[0].memory_bytes is not None
    assert planned.min_memory_bytes == 2 * BASE_OVERHEAD_BYTES + 2 * planned.pools[0].memory_bytes


@settings(deadline=None)
@given(num_min=st.integers(0, 5), num_more=st.integers(0, 5), price=st.floats(0, 100))
def test_more_replicas_never_cost_less(num_min: int, num_more: int, price: float) -> None:
    replicas = {"min": num_min, "max": max(1, num_min + num_more)}
    low, high = plan_of(config_of(CPU_POOL | {"replicas": replicas, "usd_per_hour": price})).usd_per_hour
    assert 0 <= low <= high


# ------------------------------------------------------------------------------------------------ findings


@pytest.mark.parametrize(
    ("dtype", "spec_dtype", "is_said"),
    [
        ("auto", "bfloat16", True),
        ("bfloat16", "float32", True),
        ("float32", "bfloat16", False),
        ("auto", "float16", False),
    ],
)
def test_a_cpu_without_fast_bfloat16_is_said_where_an_engine_would_use_it(
    dtype: str, spec_dtype: str, is_said: bool
) -> None:
    config = config_of(CPU_POOL | {"engine": {"dtype": dtype}})
    for machine, expected in ((replace(MACHINE, has_fast_bfloat16=False), is_said), (MACHINE, False)):
        found = findings_of(plan_of(config, machine, replace(SPEC, dtype=spec_dtype)))
        assert (("warning", "models[0].pools[0].engine.dtype") in found) == expected


def test_a_fleet_that_fits_has_no_findings() -> None:
    assert plan_of(config_of(CPU_POOL)).findings == ()


FINDINGS: list[tuple[str, Config, Machine, ModelSpec | ModelFolderError | None, tuple[str, str], str]] = [
    (
        "cores",
        config_of(CPU_POOL | {"cpus_per_replica": 5, "replicas": {"min": 2, "max": 2}}),
        MACHINE,
        SPEC,
        ("error", "models"),
        "computes on 10 CPU cores, and this machine has 8",
    ),
    ("no core left", config_of(CPU_POOL | {"cpus_per_replica": 8}), MACHINE, SPEC, ("warning", "models"), "no core"),
    (
        "memory",
        config_of(CPU_POOL | {"engine": {"kv_cache_gib": 40}}),
        MACHINE,
        SPEC,
        ("error", "models"),
        "needs 45.7 GB of memory, and this machine has 32.0 GB",
    ),
    (
        "memory in use",
        config_of(CPU_POOL),
        replace(MACHINE, available_memory_bytes=3 * GB),
        SPEC,
        ("warning", "models"),
        "only 3.0 GB are free now",
    ),
    (
        "too few GPUs",
        config_of(CUDA_POOL | {"replicas": {"min": 3, "max": 3}}),
        replace(MACHINE, gpus=(GPU, GPU)),
        SPEC,
        ("error", "models"),
        "needs 3 GPUs, and this machine has 2",
    ),
    (
        "a replica over more GPUs than there are",
        config_of(CPU_POOL, CUDA_POOL | {"gpus_per_replica": 4, "replicas": {"min": 0}}),
        replace(MACHINE, gpus=(GPU,)),
        SPEC,
        ("warning", "models[0].pools[1]"),
        "one replica needs 4 GPUs",
    ),
    ("no GPU", config_of(CUDA_POOL), MACHINE, SPEC, ("error", "models[0].pools[0]"), "no NVIDIA GPU here"),
    (
        "no GPU needed yet",
        config_of(CPU_POOL, CUDA_POOL | {"replicas": {"min": 0}}),
        MACHINE,
        SPEC,
        ("warning", "models[0].pools[1]"),
        "no NVIDIA GPU here",
    ),
    (
        "no driver",
        config_of(CUDA_POOL),
        replace(MACHINE, gpu_problem="nvidia-smi: driver mismatch"),
        SPEC,
        ("error", "models[0].pools[0]"),
        "nvidia-smi: driver mismatch",
    ),
    (
        "weights over the GPU",
        config_of(CUDA_POOL),
        replace(MACHINE, gpus=(GPU,)),
        replace(SPEC, num_float_parameters=70 * GIB),
        ("error", "models[0].pools[0]"),
        "leave no room for a KV cache",
    ),
    (
        "KV cache under one context",
        config_of(CPU_POOL | {"engine": {"kv_cache_gib": 0.005}}),
        MACHINE,
        SPEC,
        ("error", "models[0].pools[0]"),
        "holds 1310 tokens, less than one context of 2048",
    ),
    (
        "context over the model's",
        config_of(CPU_POOL, max_model_len=4096),
        MACHINE,
        SPEC,
        ("error", "models[0].max_model_len"),
        "over the model's own context of 2048 tokens",
    ),
    (
        "no chat template",
        config_of(CPU_POOL),
        MACHINE,
        replace(SPEC, has_chat_template=False),
        ("warning", "models[0].chat_template"),
        "/v1/chat/completions cannot work",
    ),
    (
        "broken folder",
        config_of(CPU_POOL),
        MACHINE,
        ModelFolderError("x has no config.json"),
        ("error", "models[0].source"),
        "x has no config.json",
    ),
    (
        "Hub id",
        config_of(CPU_POOL, source="owner/name", revision="main"),
        MACHINE,
        None,
        ("warning", "models[0].source"),
        "downloaded at start",
    ),
    (
        "over the ceiling",
        config_of(CPU_POOL, cost={"max_usd_per_hour": 0.05}),
        MACHINE,
        SPEC,
        ("error", "models[0].cost.max_usd_per_hour"),
        "costs 0.1 USD an hour, over max_usd_per_hour 0.05",
    ),
    (
        "never to be paid for",
        config_of(CPU_POOL, DEAR_POOL, cost={"max_usd_per_hour": 1}),
        MACHINE,
        SPEC,
        ("warning", "models[0].pools[1]"),
        "would cost over max_usd_per_hour 1",
    ),
    (
        "nothing kept warm",
        config_of(CPU_POOL | {"replicas": {"min": 0}}),
        MACHINE,
        SPEC,
        ("warning", "models[0].pools"),
        "waits for an engine to start",
    ),
    (
        "port taken",
        config_of(CPU_POOL),
        replace(MACHINE, unusable_endpoints={("127.0.0.1", 8000): "Address already in use"}),
        SPEC,
        ("error", "server.port"),
        "cannot listen at 127.0.0.1:8000: Address already in use",
    ),
    (
        "admin port taken",
        config_of(CPU_POOL),
        replace(MACHINE, unusable_endpoints={("127.0.0.1", 8001): "Address already in use"}),
        SPEC,
        ("error", "server.admin_port"),
        "cannot listen at 127.0.0.1:8001",
    ),
    ("low port", config_of(CPU_POOL, server={"port": 80}), MACHINE, SPEC, ("warning", "server.port"), "need root"),
    (
        "open to the network",
        config_of(CPU_POOL, server={"host": "0.0.0.0"}),
        MACHINE,
        SPEC,
        ("warning", "server.host"),
        "reachable from other machines",
    ),
    (
        "disk",
        config_of(CPU_POOL),
        replace(MACHINE, free_disk_bytes=10**6),
        SPEC,
        ("warning", "server.state_dir"),
        "has 1.0 MB left",
    ),
]


@pytest.mark.parametrize(
    ("config", "machine", "spec", "where", "message"), [row[1:] for row in FINDINGS], ids=[row[0] for row in FINDINGS]
)
def test_what_stands_in_the_way_is_said_with_what_to_do(
    config: Config,
    machine: Machine,
    spec: ModelSpec | ModelFolderError | None,
    where: tuple[str, str],
    message: str,
) -> None:
    planned = plan_of(config, machine, spec)
    assert findings_of(planned) == [where]
    assert message in planned.findings[0].message
    assert planned.findings[0].action
    assert planned.errors == (planned.findings if where[0] == "error" else ())


def test_a_hub_id_without_a_commit_is_a_second_warning() -> None:
    planned = plan_of(config_of(CPU_POOL, source="owner/name"), spec=None)
    assert findings_of(planned) == [("warning", "models[0].source"), ("warning", "models[0].revision")]


def test_an_embedding_model_needs_no_chat_template() -> None:
    config = config_of(CPU_POOL, task="embed")
    assert plan_of(config, spec=replace(SPEC, has_chat_template=False)).findings == ()


def test_errors_come_before_warnings() -> None:
    config = config_of(CUDA_POOL, server={"host": "0.0.0.0"}, cost={"max_usd_per_hour": 1})
    assert [finding.severity for finding in plan_of(config).findings] == ["error", "error", "warning"]


def test_a_models_folder_is_looked_into_and_a_hub_id_is_not(tmp_path: Path) -> None:
    data = {"models": [{"name": name, "source": source, "pools": [CPU_POOL]} for name, source in
                       (("here", str(tmp_path)), ("hub", "owner/name"))]}  # fmt: skip
    specs = read_specs(parse_config(json.dumps(data), tmp_path))
    assert [*specs] == ["here"]
    assert isinstance(specs["here"], ModelFolderError)


def test_the_bundled_model_fits_a_small_machine() -> None:
    config = load_config(ROOT / "ballast.yaml")
    machine = replace(MACHINE, num_cpus=2, total_memory_bytes=8 * GB, available_memory_bytes=7 * GB)
    assert plan(config, machine, read_specs(config)).errors == ()


# ------------------------------------------------------------------------------------------------ text and JSON


def test_the_text_shows_pools_machine_cost_and_findings() -> None:
    pools = [CPU_POOL | {"cpus_per_replica": 2}, CUDA_POOL | {"replicas": {"min": 0, "max": 4}}]
    text = render_plan(plan_of(config_of(*pools, aliases=["n"], source="owner/name", revision="main")))
    assert text.splitlines() == [
        "m (also n)",
        "  owner/name, LlamaForCausalLM, 8.0 MB of weights (bfloat16), context of 2048 tokens",
        "  pool  replicas  each on      memory each  KV cache each          USD/hour",
        "  cpu   1 to 1    2 CPU cores  2.6 GB       1.1 GB, 262144 tokens  0.10 to 0.10",
        "  gpu   0 to 4    1 GPU        unknown      unknown                0.00 to 10.00",
        "",
        "this machine   8 CPU cores, 32.0 GB of memory (30.0 GB free), no GPU",
        "smallest fleet 2 CPU cores, 3.8 GB of memory (1.2 GB for gateways and Ray)",
        "cost           0.10 to 10.10 USD an hour",
        "",
        "warning: models[0].pools[1]: no NVIDIA GPU here, so this pool cannot run",
        "  -> use a machine with one, or a pool with device: cpu",
    ]


def test_of_a_model_that_is_not_here_the_text_says_no_more_than_is_known() -> None:
    text = render_plan(plan_of(config_of(CPU_POOL, source="owner/name", revision="main"), spec=None))
    assert text.splitlines()[:2] == ["m", "  owner/name"]


def test_a_plan_without_findings_ends_with_the_cost() -> None:
    assert render_plan(plan_of(config_of(CPU_POOL))).endswith("USD an hour")


def test_the_text_names_the_gpus() -> None:
    text = render_plan(plan_of(config_of(CUDA_POOL), replace(MACHINE, gpus=(GPU,))))
    assert "H200 with 150.3 GB" in text
    assert "1.2 GB for gateways and Ray), 1 GPU\n" in text


def test_errors_are_printed_last_where_the_eye_ends() -> None:
    text = render_plan(plan_of(config_of(CUDA_POOL, server={"host": "0.0.0.0"})))
    assert text.index("warning:") < text.index("error:")


def test_the_plan_as_json_is_json_and_says_whether_it_can_start() -> None:
    machine = replace(MACHINE, gpus=(GPU,), unusable_endpoints={("127.0.0.1", 8000): "Address already in use"})
    value = json.loads(json.dumps(plan_as_json(plan_of(config_of(CPU_POOL, CUDA_POOL), machine))))
    assert value["can_start"] is False
    assert value["machine"]["unusable_endpoints"] == {"127.0.0.1:8000": "Address already in use"}
    assert [pool["pool"] for pool in value["models"][0]["pools"]] == ["cpu", "gpu"]
    assert value["max_usd_per_hour"] == pytest.approx(2.6)
