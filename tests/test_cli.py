"""The commands that need no cluster, through the entry point that the `ballast` script calls."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from pydantic import JsonValue

from serving.cli import main, parser
from serving.commands import up
from serving.commands.settings import overrides
from serving.config import Config, json_schema, load_config
from serving.lifecycle.control import InForce
from serving.lifecycle.processes import start_ticks
from serving.lifecycle.record import ServerRecord, running_server
from serving.lifecycle.server import StateClaim
from serving.ports import free_port
from serving.tenancy.keys import parse
from serving.tenancy.store import KeyStore

ROOT = Path(__file__).parent.parent
CONFIG = """
server: {{state_dir: state, port: {port}, admin_port: {admin_port}, host: "{host}"}}
models:
  - name: demo
    aliases: [small]
    source: {source}
    pools: [{{name: cpu, device: cpu, cpus_per_replica: {cpus}, usd_per_hour: 0.1, engine: {{kv_cache_gib: 0.1}}}}]
"""


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and no BALLAST_* variable from outside."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("BALLAST_"):
            monkeypatch.delenv(name)


def write_config(**changes: object) -> Path:
    """ballast.yaml in the current folder, fit for this machine."""
    values: dict[str, object] = {"host": "127.0.0.1", "source": str(ROOT / "models" / "demo"), "cpus": 1}
    values |= {"port": free_port(), "admin_port": free_port()} | changes
    path = Path("ballast.yaml")
    path.write_text(CONFIG.format(**values))
    return path.absolute()


def written_config(**changes: object) -> Config:
    return load_config(write_config(**changes))


def pretend_to_run(config: Config, runtime_dir: str = "/none", **overrides: JsonValue) -> ServerRecord:
    """Leave the record of a server whose process is this one, and which was told ``overrides`` over its file."""
    server, ticks = config.server, start_ticks(os.getpid())
    assert ticks is not None
    record = ServerRecord(
        os.getpid(), ticks, server.host, server.port, server.admin_port, runtime_dir, time.time(), "x", overrides
    )
    server.state_dir.mkdir(mode=0o700, exist_ok=True)
    record.write(server.state_dir)
    return record


@pytest.mark.parametrize("command", ["--help", "version", "check", "apply", "keys list", "models", "status", "schema"])
def test_a_quick_command_loads_neither_ray_nor_an_engine(command: str) -> None:
    write_config()
    code = (
        "import sys; from serving.cli import main\n"
        f"try: main({command.split()!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('ray', 'vllm', 'torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["stat"], "'status'"),
        (["chekc"], "'check'"),
        (["keys", "craete"], "'create'"),
        (["frobnicate"], "there are up"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(
    words: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert suggestion in capsys.readouterr().err


def test_a_command_is_there_for_each_that_the_parser_knows() -> None:
    commands = {path.stem for path in (ROOT / "serving" / "commands").glob("*.py")}
    known = parser().format_help()
    for command in ("up", "down", "apply", "status", "check", "schema", "keys", "models", "version"):
        assert command in commands
        assert command in known


@pytest.mark.parametrize("text", ["0", "65536", "x", "-1", "٣"])
def test_a_port_that_is_none_is_a_mistake_on_the_command_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["up", f"--port={text}"])
    assert "1 to 65535" in capsys.readouterr().err


def test_version_names_everything_that_answers_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["ballast", "vllm", "torch", "ray", "python"]
    assert found["ray"] == "2.60.0"
    assert main(["version"]) == 0
    assert "ballast" in capsys.readouterr().out


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_check_says_what_would_run_where(capsys: pytest.CaptureFixture[str]) -> None:
    write_config()
    assert main(["check"]) == 0
    assert "this machine" in capsys.readouterr().out
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["can_start"] is True


def test_check_of_a_wrong_file_lists_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text("server: {prot: 1}\nmodels: []\nmodel: x\n")
    assert main(["check", "--config", "wrong.yaml"]) == 2
    told = capsys.readouterr().err
    assert "did you mean `port`" in told
    assert told.startswith("ballast: wrong.yaml: 3 problems")
    assert main(["check", "--config", "wrong.yaml", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2
    assert [problem["path"] for problem in error["problems"]] == ["server.prot", "models", "model"]


def test_check_of_a_config_that_this_machine_cannot_run_is_another_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_config(cpus=1000)
    assert main(["check"]) == 3
    assert "1000 CPU cores" in capsys.readouterr().out


def test_check_does_not_take_the_server_that_runs_for_a_stranger_on_its_port() -> None:
    config = written_config()
    with socket.socket() as listener:
        listener.bind((config.server.host, config.server.port))
        listener.listen()
        assert main(["check"]) == 3
        pretend_to_run(config)
        assert main(["check"]) == 0


def test_the_config_is_the_option_else_the_variable_else_the_file_here_else_the_one_that_comes_along(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def used(*options: str) -> str:
        main(["check", "--json", *options])
        return str(json.loads(capsys.readouterr().out)["config"])

    monkeypatch.setenv("BALLAST_STATE_DIR", str(Path.cwd() / "state"))
    assert used() == str(ROOT / "ballast.yaml")
    path = write_config()
    assert used() == "ballast.yaml"
    Path("other.yaml").write_bytes(path.read_bytes())
    monkeypatch.setenv("BALLAST_CONFIG", "other.yaml")
    assert used() == "other.yaml"
    assert used("--config", str(path)) == str(path)


def test_models_lists_names_pools_and_prices(capsys: pytest.CaptureFixture[str]) -> None:
    write_config()
    assert main(["models"]) == 0
    assert "small" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["name"], model["aliases"], model["problem"]) == ("demo", ["small"], None)
    assert model["pools"][0]["usd_per_hour"] == 0.1
    assert model["spec"]["architecture"] == "LlamaForCausalLM"


def test_a_key_is_created_listed_and_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    config = written_config()
    assert main(["keys", "create", "ci", "--model", "small", "--expires", "30d", "--json"]) == 0
    created = json.loads(capsys.readouterr().out)
    assert parse(created["key"]) is not None
    assert created["models"] == ["small"]
    assert main(["keys", "list"]) == 0
    assert "ci" in capsys.readouterr().out
    assert main(["keys", "revoke", "ci"]) == 0
    with KeyStore.open(config.server.state_dir) as store:
        assert [key.state(time.time()) for key in store.list_keys()] == ["revoked"]


def test_a_key_for_a_model_that_does_not_exist_is_not_created(capsys: pytest.CaptureFixture[str]) -> None:
    config = written_config()
    assert main(["keys", "create", "ci", "--model", "smal"]) == 1
    assert "did you mean 'small'" in capsys.readouterr().err
    with KeyStore.open(config.server.state_dir) as store:
        assert store.num_keys() == 0


def test_status_and_down_say_when_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    write_config()
    assert main(["status"]) == 1
    assert main(["status", "--json"]) == 1
    assert main(["down"]) == 0
    assert main(["down", "--json"]) == 0
    text, status, down, down_json = capsys.readouterr().out.strip().split("\n")
    assert text.startswith("No server runs")
    assert json.loads(status) == {"running": False, "ready": False, "config": None, "status": None}
    assert down.startswith("No server runs")
    assert json.loads(down_json)["stopped"] is False


@pytest.fixture
def admin_port() -> Iterator[int]:
    """An admin listener that says that one of two replicas is ready."""
    load = {"running": 3, "waiting": 1, "kv_cache_usage": 0.25, "tokens_per_s": 120.4, "draining": False}
    replica = {"replica": "r1", "model": "demo", "pool": "cpu", "ready": True, "streams": 4, "load": load}
    body = {"ready": True, "in_flight": 4, "keys_required": True, "key_store_error": None}
    body["replicas"] = [{**replica, "load_age_s": 0.2}, {**replica, "replica": "r2", "load": None, "ready": False}]

    class Admin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Admin) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_status_shows_every_replica_and_its_load(admin_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    pretend_to_run(written_config(admin_port=admin_port))
    assert main(["status"]) == 0
    told = capsys.readouterr().out
    assert "Ready" in told
    assert "4 in flight" in told
    assert ["demo", "cpu", "r1", "ready", "3", "1", "25%", "120", "0.2", "s", "4"] in [
        row.split() for row in told.splitlines()
    ]
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"]["in_flight"] == 4


def test_status_says_when_the_file_says_other_than_what_runs(
    admin_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written_config(admin_port=admin_port)
    InForce(config, time.time()).write(tmp_path)
    pretend_to_run(config, str(tmp_path), admin_port=admin_port)
    write_config(port=config.server.port)
    assert main(["status"]) == 0
    assert "the file says another" not in capsys.readouterr().out
    write_config(port=free_port())
    assert main(["status"]) == 0
    assert "the file says another" in capsys.readouterr().out


def test_what_up_was_told_over_its_file_is_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    config = written_config()
    monkeypatch.setenv("BALLAST_PORT", "9000")
    monkeypatch.setenv("BALLAST_LOG_LEVEL", "debug")
    told = overrides(parser().parse_args(["up", "--port", "9001"]))
    assert told == {"port": 9001, "log_level": "debug"}
    with StateClaim(config, Path("ballast.yaml"), told):
        record = running_server(config.server.state_dir)
        assert record is not None
        assert record.overrides == told


def test_status_of_a_server_that_does_not_answer_yet_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    pretend_to_run(written_config())
    assert main(["status"]) == 1
    assert "not answering" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Exit code and words of an `up` that must not come to start anything; nothing may be left of it."""
    code = main(["up", *options])
    assert not Path("state/server.json").exists() or ServerRecord.read(Path("state")) is not None
    return code, capsys.readouterr().err


def test_up_refuses_a_wrong_config(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ballast.yaml").write_text("models: 3\n")
    code, words = refused(capsys)
    assert code == 2
    assert "models" in words


@pytest.mark.parametrize("which", ["port", "admin_port"])
def test_up_refuses_a_port_that_is_taken(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        write_config(**{which: listener.getsockname()[1]})
        code, words = refused(capsys)
    assert code == 3
    assert f"server.{which}" in words
    assert "Address already in use" in words
    assert not Path("state/server.json").exists()


def test_up_refuses_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    write_config(source="./no-such-model")
    assert refused(capsys)[0] == 2
    Path("empty-model").mkdir()
    write_config(source="./empty-model")
    code, words = refused(capsys)
    assert code == 3
    assert "config.json" in words


def test_up_refuses_more_than_the_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    write_config(cpus=1000)
    code, words = refused(capsys)
    assert code == 3
    assert "CPU cores" in words


def test_up_listens_beyond_loopback_only_with_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    config = written_config(host="0.0.0.0")
    code, words = refused(capsys)
    assert code == 2
    assert "ballast keys create" in words
    assert main(["keys", "create", "ci"]) == 0
    assert up.check(config) == 1


def test_up_refuses_to_be_the_second_server_of_a_state_folder(capsys: pytest.CaptureFixture[str]) -> None:
    config = written_config()
    record = pretend_to_run(config)
    code, words = refused(capsys)
    assert code == 4
    assert "ballast down" in words
    assert ServerRecord.read(config.server.state_dir) == record, "the other server's record stays"


def test_up_refuses_a_state_folder_that_is_open_to_others(capsys: pytest.CaptureFixture[str]) -> None:
    config = written_config()
    config.server.state_dir.mkdir(mode=0o755)
    code, words = refused(capsys)
    assert code == 4
    assert "chmod 700" in words


def test_a_refusal_is_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    write_config(cpus=1000)
    assert main(["up", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 3
