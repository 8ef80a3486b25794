"""A whole server for a benchmark: started by `ballast up`, watched, and stopped; or one that runs already."""

import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from benchmarks import processes
from serving.lifecycle.processes import processes_of, start_ticks
from serving.lifecycle.record import ServerRecord
from serving.ports import free_ports

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 90.0
_POLL_S = 0.1
_ROOT = Path(__file__).resolve().parent.parent


Replica = dict[str, Any]
"""An entry of /admin/status."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server on this machine: its own account of itself, and its processes by their part."""

    port: int
    admin_port: int
    state_dir: Path

    def status(self) -> dict[str, Any]:
        """/admin/status. Raises OSError while it does not answer."""
        with urlopen(f"http://127.0.0.1:{self.admin_port}/admin/status", timeout=5) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def answers(self) -> bool:
        """Whether the public port takes requests: HAProxy may hear of the gateways a moment after they are ready.
        Raises OSError when it does not."""
        with urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as response:
            return bool(response.status == 200)

    def metrics(self) -> str:
        with urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as response:
            return str(response.read().decode())

    def replicas(self, model: str) -> list[Replica]:
        """The replicas that take requests, as a gateway knows them. Raises OSError."""
        return [one for one in self.status()["replicas"] if one["ready"] and one["model"] == model]

    @property
    def runtime_dir(self) -> Path:
        record = ServerRecord.read(self.state_dir)
        assert record is not None, "the server runs"
        return Path(record.runtime_dir)

    @property
    def processes(self) -> set[int]:
        """All of the server's, `ballast up` left out."""
        return processes_of(self.runtime_dir)

    def named(self, title: str) -> list[int]:
        """The server's processes with ``title`` in their command line, the oldest first: ids say nothing of age, they
        begin anew."""
        found = [(start_ticks(pid), pid) for pid in set(processes.named(title)) & self.processes]
        return [pid for _, pid in sorted((ticks, pid) for ticks, pid in found if ticks is not None)]

    def gateways(self) -> list[int]:
        return self.named("ServeReplica:ballast:gateway")

    def actors(self, pool: str) -> list[int]:
        """Ray's processes for the replicas of ``pool``."""
        return sorted(set(self.named("ServeReplica:ballast:")) & set(self.named(f".{pool}")))

    def num_routed(self) -> int:
        """Gateways that HAProxy sends requests to: it hears of one a moment after that is ready. Where several nodes
        have a HAProxy, of the one that has most. Raises OSError.
        """
        return max(map(_num_up, (self.runtime_dir / "edge").glob("*/admin.sock")), default=0)

    def edges(self) -> list[int]:
        """HAProxy: the worker that takes connections and those that only finish theirs."""
        return self.named("haproxy.cfg")


@dataclass(frozen=True, slots=True)
class RunningServer(Server):
    """A server that was started here, and is ready."""

    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        return self.process.pid


@contextlib.contextmanager
def running(
    config: Mapping[str, Any],
    *options: str,
    program: Sequence[str] = ("serving.cli", "up"),
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[RunningServer]:
    """A server with this config (ports and state are chosen here). Raises RuntimeError when it does not get ready.

    ``options`` go to `ballast up`, or to the ``program`` that takes its place: a module and its first arguments;
    ``environ`` is added to its environment.
    """
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as folder:
        state_dir = Path(folder) / "state"
        port, admin_port = free_ports(2)
        server = {**config.get("server", {}), "port": port, "admin_port": admin_port, "state_dir": str(state_dir)}
        path = Path(folder) / "ballast.yaml"
        path.write_text(yaml.safe_dump({**config, "server": server}))
        output = Path(folder) / "up.log"
        with output.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *program, "--config", str(path), *options],
                cwd=_ROOT,
                stdout=log,
                stderr=log,
                # Its config is all that it hears: no variable of the caller's points it at another server's state.
                env={name: value for name, value in os.environ.items() if not name.startswith("BALLAST_")}
                | dict(environ),
                # A terminal's Ctrl-C is the benchmark's to hear: it stops the server when it has kept what it has.
                process_group=0,
            )
        try:
            server_ = RunningServer(port, admin_port, state_dir, process)
            _wait_until_ready(server_, process, output)
            yield server_
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            finally:
                process.kill()


def _num_up(admin_socket: Path) -> int:
    """What HAProxy's admin socket says of its gateways; 0 where that HAProxy has ended."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(5)
        try:
            admin.connect(str(admin_socket))
        except ConnectionRefusedError:
            return 0
        admin.sendall(b"show stat\n")
        rows = csv.DictReader(admin.makefile(encoding="ascii", newline=""))
        return sum("gateway" in row["svname"] and row["status"].startswith(("UP", "no check")) for row in rows)


def _wait_until_ready(server: RunningServer, process: "subprocess.Popen[bytes]", output: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(URLError, OSError, ValueError):
            if server.status()["ready"] and server.answers():
                return
        time.sleep(_POLL_S)
    raise RuntimeError(f"the server did not get ready:\n{output.read_text()[-4000:]}")
