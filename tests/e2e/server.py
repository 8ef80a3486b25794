"""A whole Ballast server for tests, started the way `ballast up` starts one, and what a test may ask of it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import processes
from serving.config import Config, parse_config
from serving.lifecycle.launch import Launch
from serving.lifecycle.processes import end_processes_of, processes_of
from serving.ports import free_port
from serving.tenancy.keys import NewKey
from serving.tenancy.store import KeyStore

ROOT = Path(__file__).parents[2]
MODEL, ALIAS, POOL = "ballast-demo", "demo", "cpu"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02
NUM_BATCHED_TOKENS = 256
"""Tokens per engine step: small, so that a prompt of moderate length is prefilled in several chunks."""
GRAMMAR_COMPILE_S = 0.25
"""Ordinary schemas take a hundredth of it; one that takes longer is quickly found within the other caps."""

Json = dict[str, Any]
T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of ``condition``, asked again and again. Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)
    return value


@dataclass(frozen=True)
class Server:
    """A running server. ``outsider_key`` is valid and may use no model that is served."""

    config: Config
    runtime_dir: Path
    key: str = field(repr=False)
    outsider_key: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.server.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.config.server.admin_port}"

    def raw_url(self) -> str:
        """vLLM's own server over the same engine."""
        return f"http://127.0.0.1:{(self.runtime_dir / 'raw_port').read_text()}"

    def status(self) -> Json:
        body: Json = httpx.get(f"{self.admin_url}/admin/status", timeout=5, trust_env=False).json()
        return body

    def replica(self) -> Json:
        """The one replica, as the gateway knows it."""
        (replica,) = self.status()["replicas"]
        return dict(replica)

    def num_running(self) -> int:
        """Requests that the engine works on, by its own last report."""
        return int(self.replica()["load"]["running"])

    def metrics_text(self) -> str:
        return httpx.get(f"{self.admin_url}/metrics", timeout=10, trust_env=False).text

    def metrics(self) -> "Metrics":
        return Metrics(self.metrics_text())

    def log_text(self) -> str:
        return self.config.server.log_path.read_text()

    def request_line(self, request_id: str) -> Json:
        """The log line of one request; it may still have to be written."""

        def found() -> Json | None:
            lines = (json.loads(line) for line in self.log_text().splitlines() if request_id in line)
            return next((line for line in lines if line["logger"] == "ballast.request"), None)

        return until(found, 5, f"a log line of {request_id}")

    def engine_pids(self) -> list[int]:
        """vLLM's engine core, a child of the replica."""
        return [pid for pid in processes.named("EngineCore") if pid in processes.children([self.replica()["pid"]])]

    def until_ready(self, timeout_s: float = START_TIMEOUT_S, other_than: str = "") -> Json:
        """The replica once it takes requests. ``other_than`` names one that does not count."""

        def ready() -> Json | None:
            try:
                replicas = self.status()["replicas"]
            except (httpx.HTTPError, json.JSONDecodeError):
                return None
            return next((one for one in replicas if one["ready"] and one["replica"] != other_than), None)

        return until(ready, timeout_s, "a ready replica")


class Metrics:
    """One scrape of the admin port."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples called ``name`` that carry these labels among others."""
        samples = (sample for family in self.families.values() for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def config_of(state_dir: Path, **pool_fields: object) -> Config:
    """``ballast.yaml`` with ports, state and a chunk size of its own, and these fields of its pool.

    Without torch.compile, whose first run would be most of the suite's time; what is tested here does not depend on it.
    """
    data = yaml.safe_load((ROOT / "ballast.yaml").read_text())
    data["server"] |= {"port": free_port(), "admin_port": free_port(), "state_dir": str(state_dir)}
    data["server"] |= {"shutdown_grace_s": 5.0}
    data["limits"] = {**data.get("limits", {}), "grammar_compile_s": GRAMMAR_COMPILE_S}
    pool = data["models"][0]["pools"][0]
    pool |= pool_fields
    pool["engine"] |= {"enforce_eager": True, "max_num_batched_tokens": NUM_BATCHED_TOKENS}
    return parse_config(yaml.safe_dump(data), ROOT)


@contextmanager
def running_server(runtime_dir: Path, state_dir: Path, **pool_fields: object) -> Iterator[Server]:
    """A server that is ready, with these fields of its pool.

    Raises AssertionError when, stopped, it leaves a process or its runtime folder behind.
    """
    config = config_of(state_dir, **pool_fields)
    with KeyStore.open(state_dir) as store:
        minted, _ = store.create(NewKey("e2e"), os.urandom, time.time())
        outsider, _ = store.create(NewKey("outsider", models=("another-model",)), os.urandom, time.time())
    server = Server(config, runtime_dir, minted.plaintext, outsider.plaintext)
    launch = Launch(config, str(runtime_dir), engine="tests.e2e.raw_engine:build")
    with (state_dir / "holder.log").open("wb") as log:
        holder = subprocess.Popen(
            [sys.executable, "-m", "serving.lifecycle.holder", str(os.getpid())],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        assert holder.stdin is not None
        holder.stdin.write(launch.encode())
        holder.stdin.close()
        until(lambda: holder.poll() is not None or _is_ready(server), START_TIMEOUT_S, "a ready server")
        assert holder.poll() is None, f"the server ended:\n{(state_dir / 'holder.log').read_text()[-4000:]}"
        yield server
    finally:
        _stop(holder, runtime_dir)


def _is_ready(server: Server) -> bool:
    try:
        return bool(server.status()["ready"])
    except (httpx.HTTPError, json.JSONDecodeError):
        return False


def _stop(holder: "subprocess.Popen[bytes]", runtime_dir: Path) -> None:
    holder.terminate()
    try:
        code = holder.wait(STOP_TIMEOUT_S)
        left = processes_of(runtime_dir)
        assert not left, f"processes that outlived their server: {[_command(pid) for pid in left]}"
        assert code == 0, f"the holder ended with {code}"
        assert not runtime_dir.exists(), f"{runtime_dir} is still there"
    finally:
        holder.kill()
        end_processes_of(runtime_dir)


def _command(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid} (ended)"
    return f"{pid} {re.sub(r'blst_live_[0-9A-Za-z_]+', 'KEY', text)[:200]}"
