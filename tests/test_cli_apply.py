"""`ballast apply` against a server that a test plays: what is shown, what is asked, what is refused, how it ends."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import JsonValue

from serving.cli import main
from serving.config import Config, load_config
from serving.deployments import config_version
from serving.lifecycle.control import Apply, InForce, Listener, Report
from serving.lifecycle.processes import start_ticks
from serving.lifecycle.record import ServerRecord

ROOT = Path(__file__).parent.parent
RUNTIME = Path("run")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and no BALLAST_* variable from outside."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("BALLAST_"):
            monkeypatch.delenv(name)


def write_config(server: dict[str, Any] | None = None, **pool: object) -> Config:
    """ballast.yaml in the current folder."""
    cpu = {"name": "cpu", "device": "cpu", "cpus_per_replica": 1, "usd_per_hour": 0.1, "engine": {"kv_cache_gib": 0.1}}
    model = {"name": "demo", "source": str(ROOT / "models" / "demo"), "pools": [cpu | pool]}
    data = {"server": {"state_dir": "state", **(server or {})}, "models": [model]}
    Path("ballast.yaml").write_text(yaml.safe_dump(data))
    return load_config(Path("ballast.yaml"))


@pytest.fixture
def running() -> Config:
    """The config of a server that this process claims to be."""
    config = write_config()
    pretend_to_run(config)
    return config


def pretend_to_run(config: Config, **overrides: JsonValue) -> None:
    """Leave what a server leaves that runs with ``config``, of which ``overrides`` were not in its file."""
    RUNTIME.mkdir()
    InForce(config, time.time()).write(RUNTIME)
    server, ticks = config.server, start_ticks(os.getpid())
    assert ticks is not None
    server.state_dir.mkdir(mode=0o700)
    runtime = str(RUNTIME.absolute())
    ServerRecord(
        os.getpid(), ticks, server.host, server.port, server.admin_port, runtime, time.time(), "x", overrides
    ).write(server.state_dir)


@contextmanager
def answering(*reports: Report) -> Iterator["Future[Apply]"]:
    """The server's side: takes one request and says ``reports``."""
    listener = Listener(RUNTIME)

    def answer() -> Apply:
        while (found := listener.take()) is None:
            os.sched_yield()
        request, client = found
        for report in reports:
            client.tell(report)
        client.close()
        return request

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(answer)
        finally:
            listener.close()


def told(capsys: pytest.CaptureFixture[str]) -> Sequence[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_what_would_change_is_shown_and_nothing_done(running: Config, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(usd_per_hour=0.2, engine={"kv_cache_gib": 0.2})
    assert main(["apply", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "~ models[demo].pools[cpu].usd_per_hour: 0.1 -> 0.2" in shown
    assert "~ demo/cpu: 1 to 1 replicas; its replicas are replaced, one after the other" in shown
    assert "cost 0.10 to 0.10 USD an hour -> 0.20 to 0.20" in shown
    assert main(["apply", "--dry-run", "--json"]) == 0
    [change] = told(capsys)
    assert change["event"] == "change"
    assert change["old_version"] == config_version(running)


def test_a_config_that_is_in_force_already_is_no_reason_to_ask(
    running: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply"]) == 0
    assert "nothing to change" in capsys.readouterr().out


def test_a_wrong_file_is_refused_whole_with_all_its_problems(
    running: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ballast.yaml").write_text("server: {state_dir: state, prot: 1}\nmodels: []\n")
    assert main(["apply", "--yes", "--json"]) == 2
    [answer] = told(capsys)
    assert [problem["path"] for problem in answer["error"]["problems"]] == ["server.prot", "models"]


def test_keys_that_need_a_restart_are_named_and_nothing_is_applied(
    running: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config({"port": 9000, "gateways": 3}, usd_per_hour=0.2)
    assert main(["apply", "--yes"]) == 2
    said = capsys.readouterr()
    assert "server.port: needs a restart: the server runs with 8000 (found: 9000)" in said.err
    assert "server.gateways: needs a restart" in said.err
    assert said.out == ""


def test_what_ballast_up_was_told_over_its_file_still_holds(capsys: pytest.CaptureFixture[str]) -> None:
    pretend_to_run(write_config({"port": 9000, "log_level": "debug"}), port=9000, log_level="debug")
    write_config(usd_per_hour=0.2)
    assert main(["apply", "--dry-run", "--json"]) == 0
    [change] = told(capsys)
    assert [key["path"] for key in change["keys"]] == ["models[demo].pools[cpu].usd_per_hour"]
    write_config({"admin_port": 9001})
    assert main(["apply", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "server.admin_port: needs a restart" in said
    assert "server.port" not in said


def test_what_this_shells_environment_says_is_not_the_servers_affair(
    running: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLAST_PORT", "9000")
    monkeypatch.setenv("BALLAST_LOG_LEVEL", "debug")
    assert main(["apply"]) == 0
    assert "nothing to change" in capsys.readouterr().out


def test_a_config_that_does_not_fit_the_machine_is_refused(running: Config, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(cpus_per_replica=1000)
    assert main(["apply", "--yes"]) == 3
    assert "1000 CPU cores" in capsys.readouterr().err


def test_without_a_server_there_is_nothing_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    write_config()
    assert main(["apply", "--yes"]) == 4
    assert "ballast up" in capsys.readouterr().err


def test_where_nobody_can_be_asked_yes_must_be_said(
    running: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(usd_per_hour=0.2)
    with open(os.devnull) as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["apply"]) == 1
    assert "--yes" in capsys.readouterr().err


def test_a_no_changes_nothing(
    running: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(usd_per_hour=0.2)
    asked, terminal = os.openpty()
    os.write(asked, b"n\n")
    with open(terminal) as person:
        monkeypatch.setattr("sys.stdin", person)
        assert main(["apply"]) == 1
    os.close(asked)
    assert "Nothing was changed" in capsys.readouterr().err


def test_the_server_gets_the_config_and_its_progress_is_shown(
    running: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write_config(usd_per_hour=0.2)
    reports = Report("step", "demo/cpu: healthy, 1 running"), Report("applied", "config x is in force")
    with answering(*reports) as asked:
        assert main(["apply", "--yes", "--timeout", "33"]) == 0
        assert asked.result() == Apply(new, config_version(running), 33.0)
    assert capsys.readouterr().out.endswith("  demo/cpu: healthy, 1 running\nconfig x is in force\n")


@pytest.mark.parametrize(
    ("reports", "code", "words"),
    [
        ([Report("failed", "demo/cpu could not be started; the old config is in force")], 3, "the old config is in"),
        ([Report("refused", "another config is being applied; try again")], 4, "Nothing was changed: another"),
        ([Report("step", "demo/cpu: updating")], 4, "has ended meanwhile"),
    ],
)
def test_what_goes_wrong_is_told_with_an_exit_code_of_its_own(
    reports: list[Report], code: int, words: str, running: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(usd_per_hour=0.2)
    with answering(*reports):
        assert main(["apply", "--yes", "--json"]) == code
    assert words in told(capsys)[-1]["error"]["message"]


def test_status_says_which_config_is_in_force(running: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"]) == 1  # nothing listens on its admin port
    assert told(capsys)[0]["config"]["version"] == config_version(running)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", "86401"])
def test_a_timeout_is_a_number_of_seconds(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["apply", "--timeout", text])
    assert "must be seconds" in capsys.readouterr().err
