import os
import stat
from pathlib import Path

import pytest

from serving import cluster
from serving.cluster import Cluster, EdgePorts, cluster_environment, compile_cache_dir, new_runtime_dir
from serving.config import load_config
from serving.config.server import ServerConfig
from serving.errors import MachineError, StateError
from serving.lifecycle.processes import RUNTIME_DIR_VARIABLE

ROOT = Path(__file__).parent.parent
LONGEST_SOCKET_IN_IT = "/ray/session_2026-11-22_11-40-30_123456_1234567/sockets/plasma_store"
MAX_SOCKET_PATH_CHARS = 107


@pytest.fixture
def server() -> ServerConfig:
    return load_config(ROOT / "ballast.yaml").server


def test_the_runtime_folder_is_private_and_short_enough_for_rays_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for temp_dir in ("/tmp", str(long)):
        monkeypatch.setattr(cluster.tempfile, "tempdir", temp_dir)
        folder = new_runtime_dir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder) + LONGEST_SOCKET_IN_IT) <= MAX_SOCKET_PATH_CHARS
        folder.rmdir()


def test_everything_that_ray_and_its_proxy_write_lies_in_the_runtime_folder(
    tmp_path: Path, server: ServerConfig
) -> None:
    environment = cluster_environment(tmp_path, server, EdgePorts.free(server))
    kept = {"TORCHINDUCTOR_CACHE_DIR"}
    paths = [value for name, value in environment.items() if value.startswith("/") and name not in kept]
    assert len(paths) >= 7
    assert [path for path in paths if not Path(path).is_relative_to(tmp_path)] == []
    assert environment[RUNTIME_DIR_VARIABLE] == environment["TMPDIR"].removesuffix("/tmp") == str(tmp_path)
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/h"}, "~/.cache/vllm/torchinductor"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/vllm/torchinductor"),
        ({"XDG_CACHE_HOME": "/x", "VLLM_CACHE_ROOT": "/v"}, "/v/torchinductor"),
        ({"TORCHINDUCTOR_CACHE_DIR": "/t", "VLLM_CACHE_ROOT": "/v"}, "/t"),
    ],
)
def test_what_was_compiled_outlives_the_server(environ: dict[str, str], folder: str) -> None:
    assert compile_cache_dir(environ) == Path(folder).expanduser()


def test_ray_asks_for_a_token_that_nobody_can_guess_and_reports_nothing(tmp_path: Path, server: ServerConfig) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    environments = []
    for folder in (first, second):
        folder.mkdir()
        environments.append(cluster_environment(folder, server, EdgePorts.free(server)))
    tokens = {environment["RAY_AUTH_TOKEN"] for environment in environments}
    assert len(tokens) == 2
    assert all(len(bytes.fromhex(token)) == 32 for token in tokens)
    assert environments[0]["RAY_AUTH_MODE"] == "token"
    assert environments[0]["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_launcher_that_stands_for_haproxy_is_ours_alone(tmp_path: Path, server: ServerConfig) -> None:
    launcher = Path(cluster_environment(tmp_path, server, EdgePorts.free(server))["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert stat.S_IMODE(launcher.stat().st_mode) == 0o700
    assert "edge/haproxy.py" in launcher.read_text()
    assert os.access(launcher, os.X_OK)


@pytest.mark.parametrize("error", [StateError("No space left on device"), OSError("No space left"), MachineError("no")])
def test_a_config_that_cannot_be_handed_over_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def deploy(*_: object) -> None:
        raise error

    old, new = load_config(ROOT / "ballast.yaml"), load_config(ROOT / "ballast.cuda.yaml")
    running = Cluster(old, runtime_dir=tmp_path)
    monkeypatch.setattr(running, "deploy", deploy)
    with pytest.raises(MachineError, match="does not take the config"):
        running.redeploy(new)
    assert running.config is old
