"""The config: what a file may say, and how a wrong one is refused."""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.config import Config, Environment, load_config, parse_config, read_environment
from serving.config.limits import Limits
from serving.config.pool import CPU_COLD_START_S, CUDA_COLD_START_S, CpuPool, CudaPool
from serving.config.problem import FileProblem
from serving.config.speed import CPU_SPEED, CUDA_SPEED
from serving.errors import ConfigError, Problem

ROOT = Path(__file__).parent.parent
CPU_POOL = {"name": "cpu", "device": "cpu", "cpus_per_replica": 1, "usd_per_hour": 0.1}
CUDA_POOL = {"name": "gpu", "device": "cuda", "gpus_per_replica": 2, "usd_per_hour": 2.5}
SPEED = {"step_s": 0.1, "sequence_s": 0.01, "kv_token_s": 0, "prompt_token_s": 0.001}
MODEL = {"name": "m", "source": "owner/name", "pools": [CPU_POOL, CUDA_POOL]}
FULL = {
    "server": {"host": "127.0.0.1", "port": 8000, "log_level": "info"},
    "limits": {"max_n": 8, "max_output_tokens": None, "allow_regex": False},
    "models": [
        MODEL
        | {
            "aliases": ["other"],
            "revision": "main",
            "slo": {"ttft_s": 1.5},
            "cost": {"max_usd_per_hour": 12.0},
            "pools": [
                CPU_POOL | {"replicas": {"min": 1, "max": 2}, "engine": {"kv_cache_gib": 2, "extra": {"swap": [1]}}},
                CUDA_POOL | {"fallback": {"max_prompt_tokens": 5}, "engine": {"gpu_memory_utilization": 0.5}},
            ],
        }
    ],
}


def parse(data: object, base_dir: Path = ROOT) -> Config:
    return parse_config(json.dumps(data), base_dir)


def problems_of(data: object, base_dir: Path = ROOT) -> tuple[Problem, ...]:
    text = data if isinstance(data, str) else json.dumps(data)
    with pytest.raises(ConfigError) as caught:
        parse_config(text, base_dir)
    return caught.value.problems


def only_problem(data: object, base_dir: Path = ROOT) -> Problem:
    (problem,) = problems_of(data, base_dir)
    return problem


def with_model(**changes: object) -> dict[str, object]:
    return {"models": [MODEL | changes]}


def with_pool(**changes: object) -> dict[str, object]:
    return with_model(pools=[CPU_POOL | changes])


# ------------------------------------------------------------------------------------------------ what a file gives


@pytest.mark.parametrize("name", ["ballast.yaml", "ballast.cuda.yaml"])
def test_the_files_we_ship_are_valid(name: str) -> None:
    config = load_config(ROOT / name)
    assert config.models[0].names == ("ballast-demo", "demo")
    assert config.models[0].folder == ROOT / "models/demo"


def test_what_is_left_out_has_its_default() -> None:
    config = parse({"models": [MODEL]})
    assert (config.server.host, config.server.port, config.server.admin_port) == ("127.0.0.1", 8000, 8001)
    assert config.server.state_dir == Path.home() / ".local/state/ballast"
    assert config.limits == Limits()
    assert config.models[0].task == "generate"
    assert [pool.replicas.max for pool in config.models[0].pools] == [1, 1]


def test_a_config_cannot_be_changed() -> None:
    config = parse(FULL)
    with pytest.raises(ValidationError, match="frozen"):
        config.server.port = 1
    assert isinstance(config.models, tuple)
    assert isinstance(config.models[0].pools, tuple)


def test_every_name_and_alias_finds_its_model() -> None:
    config = parse(FULL)
    assert config.model_names == {"m": config.models[0], "other": config.models[0]}


def test_pools_are_typed_by_their_device() -> None:
    cpu, cuda = parse(FULL).models[0].pools
    assert isinstance(cpu, CpuPool)
    assert isinstance(cuda, CudaPool)
    assert (cpu.num_threads, cuda.tensor_parallel_size) == (1, 2)


@pytest.mark.parametrize(("cpus", "num_threads"), [(0.25, 1), (1, 1), (3.5, 3)])
def test_a_replica_computes_on_whole_cores_and_at_least_one(cpus: float, num_threads: int) -> None:
    pool = parse(with_pool(cpus_per_replica=cpus)).models[0].pools[0]
    assert isinstance(pool, CpuPool)
    assert pool.num_threads == num_threads


@pytest.mark.parametrize(
    ("gpus", "share", "expected"), [(1, None, 0.9), (0.5, None, 0.45), (4, None, 0.9), (0.5, 0.3, 0.3)]
)
def test_a_replica_on_part_of_a_gpu_takes_that_part_of_its_memory(
    gpus: float, share: float | None, expected: float
) -> None:
    pool = CUDA_POOL | {"gpus_per_replica": gpus, "engine": {"gpu_memory_utilization": share}}
    parsed = parse(with_model(pools=[pool])).models[0].pools[0]
    assert isinstance(parsed, CudaPool)
    assert parsed.gpu_memory_utilization == pytest.approx(expected)


def test_an_engine_is_as_fast_as_its_device_until_the_file_says_better() -> None:
    cpu, cuda = parse({"models": [MODEL]}).models[0].pools
    assert (cpu.seed_speed, cpu.seed_cold_start_s) == (CPU_SPEED, CPU_COLD_START_S)
    assert (cuda.seed_speed, cuda.seed_cold_start_s) == (CUDA_SPEED, CUDA_COLD_START_S)
    [known] = parse(with_pool(speed=SPEED, cold_start_s=7)).models[0].pools
    assert (known.seed_speed, known.seed_cold_start_s) == ((0.1, 0.01, 0.0, 0.001), 7.0)
    assert known.seed_steps > cpu.seed_steps, "what was measured is worth more than a guess"


@pytest.mark.parametrize(
    ("resources", "fitting"),
    [({}, []), ({"CPU": 0.5}, []), ({"CPU": 1.0}, ["cpu"]), ({"CPU": 8.0, "GPU": 1.0}, ["cpu"]),
     ({"CPU": 8.0, "GPU": 2.0}, ["cpu", "gpu"])],
)  # fmt: skip
def test_a_node_takes_a_replica_if_it_has_the_devices(resources: dict[str, float], fitting: list[str]) -> None:
    assert [pool.name for pool in parse({"models": [MODEL]}).models[0].pools if pool.fits(resources)] == fitting


def test_a_pool_stands_in_for_others_only_where_the_file_says_so() -> None:
    cpu, cuda = parse(FULL).models[0].pools
    assert cpu.fallback is None
    assert cuda.fallback is not None
    assert (cuda.fallback.max_prompt_tokens, cuda.fallback.max_output_tokens, cuda.fallback.keys) == (5, 256, None)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
)
def test_loopback_is_known_by_the_address(host: str, is_loopback: bool) -> None:
    assert parse(FULL | {"server": {"host": host}}).server.is_loopback is is_loopback


def test_the_admin_listener_is_always_on_loopback() -> None:
    assert parse(FULL | {"server": {"host": "0.0.0.0"}}).server.admin_host == "127.0.0.1"


# ------------------------------------------------------------------------------------------------ paths


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "chat.jinja").write_text("")
    config = parse(
        {"server": {"state_dir": "state"}} | with_model(source="weights", chat_template="chat.jinja"), tmp_path
    )
    assert config.models[0].folder == tmp_path / "weights"
    assert config.models[0].chat_template == tmp_path / "chat.jinja"
    assert config.server.state_dir == tmp_path / "state"


def test_a_source_that_is_no_folder_here_is_a_hub_id(tmp_path: Path) -> None:
    model = parse(with_model(source="Qwen/Qwen3-8B"), tmp_path).models[0]
    assert (model.source, model.folder) == ("Qwen/Qwen3-8B", None)


@pytest.mark.parametrize("source", ["./nope", "../nope", "/nope", "~/nope", "~nobody-of-that-name/x"])
def test_a_source_written_as_a_path_must_exist(source: str, tmp_path: Path) -> None:
    problem = only_problem(with_model(source=source), tmp_path)
    assert problem.path == "models[0].source"
    assert problem.reason.startswith("no such")


@pytest.mark.parametrize("source", ["", "a/b/c", "a b", "x" * 5000, "owner/"])
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(source: str, tmp_path: Path) -> None:
    assert "neither a folder that exists here nor a Hub id" in only_problem(with_model(source=source), tmp_path).reason


def test_a_path_with_a_nul_character_is_refused() -> None:
    assert "NUL" in only_problem({"server": {"state_dir": "a\0b"}, "models": [MODEL]}).reason
    assert "NUL" in only_problem(with_model(source="a\0b")).reason


# ------------------------------------------------------------------------------------------------ what is refused


REFUSED: list[tuple[dict[str, object], str, str, str | None]] = [
    # file, path, part of the reason, suggestion
    (FULL | {"serverr": {}}, "serverr", "unknown key", "server"),
    (FULL | {"server": {"prot": 80}}, "server.prot", "unknown key", "port"),
    (FULL | {"server": {"port": "8000"}}, "server.port", "must be a valid integer", None),
    (FULL | {"server": {"port": True}}, "server.port", "must be a valid integer", None),
    (FULL | {"server": {"port": 0}}, "server.port", "greater than or equal to 1", None),
    (FULL | {"server": {"port": 8001}}, "server", "port and admin_port are both 8001", None),
    (FULL | {"server": {"host": "example.org"}}, "server.host", "must be an IP address", None),
    (FULL | {"server": {"log_level": "warn"}}, "server.log_level", "must be 'debug'", "warning"),
    (FULL | {"server": []}, "server", "must be a mapping", None),
    (FULL | {"limits": {"max_n": 1e3}}, "limits.max_n", "must be a valid integer", None),
    (FULL | {"limits": {"max_body_bytes": 2048}}, "limits", "max_schema_bytes is over max_body_bytes", None),
    (FULL | {"models": []}, "models", "at least 1 item", None),
    ({"server": {}}, "models", "is required", None),
    (with_model(pools=[]), "models[0].pools", "at least 1 item", None),
    (with_model(pools={}), "models[0].pools", "must be a list", None),
    (with_model(name="no spaces"), "models[0].name", "pattern", None),
    (with_model(name="x" * 129), "models[0].name", "pattern", None),
    (with_model(name=None), "models[0].name", "must be a valid string", None),
    (with_model(aliases=["m"]), "models[0].aliases[0]", "already taken by models[0].name", None),
    (with_model(chat_template="nope.jinja"), "models[0].chat_template", "no such file", None),
    (with_model(task="embed", tool_call_parser="hermes"), "models[0]", "takes no parser", None),
    (with_model(source="models/demo", revision="x"), "models[0]", "revision is for Hub ids", None),
    (with_pool(name="CPU"), "models[0].pools[0].name", "pattern", None),
    (with_pool(device="gpu"), "models[0].pools[0].device", "must be cpu or cuda", "cpu"),
    (with_pool(cpus_per_replica=0), "models[0].pools[0].cpus_per_replica", "greater than 0", None),
    (
        with_pool(speed={k: v for k, v in SPEED.items() if k != "sequence_s"}),
        "models[0].pools[0].speed.sequence_s",
        "is required",
        None,
    ),
    (
        with_pool(speed=SPEED | {"prompt_token_s": 0}),
        "models[0].pools[0].speed.prompt_token_s",
        "greater than 0",
        None,
    ),
    (with_pool(speed=SPEED | {"step_s": -1}), "models[0].pools[0].speed.step_s", "greater than or equal to 0", None),
    (with_pool(cold_start_s=0), "models[0].pools[0].cold_start_s", "greater than 0", None),
    (with_pool(fallback={"max_prompts": 5}), "models[0].pools[0].fallback.max_prompts", "unknown key", None),
    (
        with_pool(fallback={"max_prompt_tokens": 0}),
        "models[0].pools[0].fallback.max_prompt_tokens",
        "greater than or equal to 1",
        None,
    ),
    (with_model(slo={"objective": 1}), "models[0].slo.objective", "less than 1", None),
    (with_model(slo={"objective": 99}), "models[0].slo.objective", "less than 1", None),
    (with_model(slo={"shed": "yes"}), "models[0].slo.shed", "must be a valid boolean", None),
    (FULL | {"autoscaler": {"mode": "off"}}, "autoscaler.mode", "must be 'act' or 'recommend'", None),
    (FULL | {"limits": {"max_queued_requests": 0}}, "limits.max_queued_requests", "greater than or equal to 1", None),
    (with_pool(replicas={"min": 3, "max": 2}), "models[0].pools[0].replicas", "min (3) is over max (2)", None),
    (with_pool(replicas={"min": 0, "max": 0}), "models[0].pools[0].replicas.max", "greater than or equal", None),
    (with_pool(gpus_per_replica=1), "models[0].pools[0].gpus_per_replica", "only device: cuda", None),
    (with_pool(max_num_seqs=1), "models[0].pools[0].max_num_seqs", "belongs in models[].pools[].engine", None),
    (
        with_pool(engine={"gpu_memory_utilization": 0.9}),
        "models[0].pools[0].engine.gpu_memory_utilization",
        "belongs in models[].pools[].engine (only device: cuda)",
        None,
    ),
    (with_pool(engine={"dtype": "bf16"}), "models[0].pools[0].engine.dtype", "must be 'auto'", "bfloat16"),
    (with_pool(engine={"load_format": "pt"}), "models[0].pools[0].engine.load_format", "must be", None),
    (
        with_model(pools=[CUDA_POOL | {"gpus_per_replica": 1.5}]),
        "models[0].pools[0]",
        "gpus_per_replica (1.5) over 1 must be a whole number",
        None,
    ),
    (
        with_model(pools=[CUDA_POOL | {"gpus_per_replica": 0.5, "engine": {"gpu_memory_utilization": 0.9}}]),
        "models[0].pools[0]",
        "over the replica's share of a GPU",
        None,
    ),
    (
        with_model(pools=[CUDA_POOL | {"engine": {"kv_cache_gib": 1}}]),
        "models[0].pools[0].engine.kv_cache_gib",
        "only device: cpu",
        None,
    ),
    (with_model(pools=[CPU_POOL, CPU_POOL]), "models[0].pools[1].name", "taken by models[0].pools[0].name", None),
    ({"models": [MODEL, MODEL]}, "models[1].name", "already taken by models[0].name", None),
    ({"models": [MODEL, MODEL | {"name": "n", "aliases": ["m"]}]}, "models[1].aliases[0]", "already taken", None),
]


@pytest.mark.parametrize(("data", "path", "reason", "suggestion"), REFUSED)
def test_an_impossible_value_is_refused_with_path_reason_and_suggestion(
    data: dict[str, object], path: str, reason: str, suggestion: str | None
) -> None:
    problem = only_problem(data)
    assert problem.path == path
    assert reason in problem.reason
    assert problem.suggestion == suggestion


def test_a_pool_without_device_is_told_to_name_one() -> None:
    pool = {key: value for key, value in CPU_POOL.items() if key != "device"}
    assert only_problem(with_model(pools=[pool])) == FileProblem(
        "models[0].pools[0].device", "", "is required: cpu or cuda", line=1
    )


@pytest.mark.parametrize("key", ["trust_remote_code", "hf_token", "worker_cls", "host", "kv_transfer_config"])
def test_extra_refuses_arguments_that_open_a_door(key: str) -> None:
    problem = only_problem(with_pool(engine={"extra": {key: "x"}}))
    assert problem.path == f"models[0].pools[0].engine.extra.{key}"
    assert problem.reason.startswith(f"not taken here: {key} ")


@pytest.mark.parametrize("key", ["max_num_seqs", "kv_cache_gib", "gpu_memory_utilization", "_private"])
def test_extra_refuses_what_the_engine_section_types_itself(key: str) -> None:
    assert only_problem(with_pool(engine={"extra": {key: 1}})).reason.startswith("not taken here")


def test_extra_keeps_other_arguments_as_they_are() -> None:
    extra = {"cudagraph_capture_sizes": [1, 2], "attention_config": {"backend": "x"}}
    assert parse(with_pool(engine={"extra": extra})).models[0].pools[0].engine.extra == extra


@pytest.mark.parametrize("key", ["api_key", "HF_TOKEN", "password", "secret"])
def test_a_secret_in_the_file_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(FULL | {"server": {key: "sk-canary"}})
    assert "secrets never live in this file" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert all("canary" not in problem.value for problem in caught.value.problems)


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """
        server: {prot: 1, host: nowhere}
        limits: {max_n: 0}
        models:
          - {name: a, source: ./nope, pools: [{name: c, device: cuda, gpus_per_replica: 1}]}
          - {name: a, source: x, pools: []}
        typo: 1
        limits: {}
    """
    problems = problems_of(text)
    assert [problem.path for problem in problems if isinstance(problem, FileProblem)] == [
        "server.host",
        "server.prot",
        "limits.max_n",
        "models[0].source",
        "models[0].pools[0].usd_per_hour",
        "models[1].name",
        "models[1].pools",
        "typo",
        "limits",
    ]
    assert [problem.line for problem in problems if isinstance(problem, FileProblem)] == [2, 2, 3, 5, 5, 6, 6, 7, 8]


def test_the_error_reads_as_one_line_for_each_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("server:\n  prot: 80\nmodels: 3\n", ROOT, origin="my.yaml")
    assert str(caught.value).splitlines() == [
        "my.yaml: 2 problems",
        "  line 2: server.prot: unknown key; did you mean `port`? (found: 80)",
        "  line 3: models: must be a list (found: 3)",
    ]


def test_the_error_cannot_steer_the_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config('"\\e[31m": 1\nmodels: [{name: "\\e[0m", source: "\\e[0m", pools: 1}]', ROOT)
    assert all(line.isprintable() for line in str(caught.value).splitlines())


# ------------------------------------------------------------------------------------------------ files and YAML


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n", "must be a mapping"),
        (b"just words", "must be a mapping"),
        (b"models: \xff", "not UTF-8 (byte 8)"),
        (b"models: [1", "not valid YAML: expected ',' or ']', but got '<stream end>' (column 11)"),
        (b"a: 1\n b: 2\n", "not valid YAML: mapping values are not allowed here (column 3)"),
        (b"a: &x 1\nb: *x\n", "aliases are not supported; write the value out (column 4)"),
        (b"[" * 500, "nested deeper than 32 levels"),
        (b"--- {}\n--- {}\n", "but found another document (column 1)"),
        (b'a: "\\UFFFFFFFF"\n', "a character that does not exist"),
        (b'"\\ud800": 1\n', "half a surrogate pair (column 1)"),
        (b"a: \0", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "ballast.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (problem,) = caught.value.problems
    assert reason in problem.reason
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("server: {port: 1, port: 2}", "server.port", "appears twice; first on line 1"),
        ("server: !!python/object:os.system {}", "server", "tags are not supported"),
        ("server: {host: !!binary aGk=}", "server.host", "tags are not supported"),
        ("? [1, 2]\n: 3", "", "a key must be a word"),
        ("<<: {server: {}}", "<<", "unknown key"),
    ],
)
def test_yaml_beyond_plain_values_is_refused(text: str, path: str, reason: str) -> None:
    found = [problem for problem in problems_of(text) if problem.path == path]
    assert any(reason in problem.reason for problem in found)


def test_words_that_yaml_1_1_turns_into_other_types_stay_words() -> None:
    text = f"server: {{}}\nmodels: [{{name: on, source: no, revision: 2024-01-01, pools: [{json.dumps(CPU_POOL)}]}}]"
    model = parse_config(text.replace('"name"', '"engine": {"kernels": off}, "name"'), ROOT).models[0]
    assert (model.name, model.source, model.revision) == ("on", "no", "2024-01-01")
    assert model.pools[0].engine.kernels == "off"


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", ".inf", ".nan", "1:30", "0x10"])
def test_a_number_out_of_this_world_is_refused(number: str) -> None:
    assert "must be a valid" in only_problem(f"server: {{port: {number}}}\nmodels: [{json.dumps(MODEL)}]").reason


# ------------------------------------------------------------------------------------------------ environment


def test_the_environment_overrides_the_file() -> None:
    environment = read_environment(
        {"BALLAST_PORT": "9000", "BALLAST_HOST": "0.0.0.0", "BALLAST_STATE_DIR": "/s", "BALLAST_LOG_LEVEL": "debug"}
    )
    server = parse_config(json.dumps(FULL), ROOT, environment).server
    assert (server.port, server.host, server.log_level) == (9000, "0.0.0.0", "debug")
    assert server.state_dir == Path("/s")


def test_other_variables_and_empty_ones_say_nothing() -> None:
    assert read_environment({"PATH": "/bin", "BALLAST_PORT": "", "VLLM_SERVER_DEV_MODE": "0"}) == Environment()


def test_the_environment_names_the_config_file() -> None:
    assert read_environment({"BALLAST_CONFIG": "my.yaml"}).config == Path("my.yaml")


@pytest.mark.parametrize(
    ("name", "value", "reason", "suggestion"),
    [
        ("BALLAST_PROT", "1", "unknown variable", "BALLAST_PORT"),
        ("BALLAST_ZZZ", "1", "unknown variable", None),
        ("BALLAST_PORT", "http", "must be a port, 1 to 65535", None),
        ("BALLAST_PORT", "9" * 5000, "must be a port, 1 to 65535", None),
        ("BALLAST_PORT", "٣", "must be a port, 1 to 65535", None),
        ("BALLAST_HOST", "example.org", "must be an IP address", None),
        ("BALLAST_LOG_LEVEL", "warn", "must be one of debug, info, warning, error", "warning"),
        ("VLLM_SERVER_DEV_MODE", "1", "opens the engine's development routes; unset it", None),
    ],
)
def test_a_wrong_variable_is_refused(name: str, value: str, reason: str, suggestion: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read_environment({name: value})
    (problem,) = caught.value.problems
    assert (problem.path, problem.suggestion) == (name, suggestion)
    assert reason in problem.reason


def test_overrides_work_without_a_server_section_and_leave_a_broken_one_to_its_error() -> None:
    environment = Environment(port=9000)
    assert parse_config(json.dumps({"models": [MODEL]}), ROOT, environment).server.port == 9000
    with pytest.raises(ConfigError, match="server: must be a mapping"):
        parse_config(json.dumps({"server": 3, "models": [MODEL]}), ROOT, environment)


# ------------------------------------------------------------------------------------------------ any input at all


def keys_of(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key in ``value`` that is ours to name (not those inside `extra`)."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield (*path, key)
            if key != "extra":
                yield from keys_of(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from keys_of(child, (*path, index))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)  # other work shares the cores
@given(st.sampled_from(list(keys_of(FULL))), st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12))
def test_any_changed_key_is_a_config_error(path: tuple[str | int, ...], suffix: str) -> None:
    data = copy.deepcopy(FULL)
    section: dict[str | int, object] = data  # type: ignore[assignment]
    for part in path[:-1]:
        section = section[part]  # type: ignore[assignment]
    section[f"{path[-1]}-{suffix}"] = section.pop(path[-1])
    assert any(str(path[-1]) in problem.path for problem in problems_of(data))


@settings(deadline=None)  # other work shares the cores
@given(st.sampled_from(list(keys_of(FULL))), json_values)
def test_any_changed_value_gives_a_config_or_a_config_error(path: tuple[str | int, ...], value: object) -> None:
    data = copy.deepcopy(FULL)
    section: dict[str | int, object] = data  # type: ignore[assignment]
    for part in path[:-1]:
        section = section[part]  # type: ignore[assignment]
    section[path[-1]] = value
    config_or_problems(json.dumps(data, ensure_ascii=False))


@settings(deadline=None)  # other work shares the cores
@given(st.text() | st.text("{}[]:,-?&*!|>'\"%@`#\\ \nab1~.") | json_values.map(yaml.safe_dump))
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    config_or_problems(text)


def config_or_problems(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_config(text, ROOT)
