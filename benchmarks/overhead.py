"""What all of Ballast costs over raw vLLM: ``ballast bench overhead [--json FILE]``.

One engine is started once, inside a Ballast replica. Two ways lead to it: vLLM's own OpenAI server (uvicorn over
vLLM's app), and the whole of Ballast (HAProxy, gateway with key check, request checks and metering, the multiplexed
connection). Rounds of the two alternate, first one then the other leading, so that what else the machine does hits
both; a ratio is taken within a round and the median over rounds is reported.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import uvloop

from benchmarks import environment, processes
from benchmarks.load.streams import Round, Target, run_round
from serving.cluster import Cluster
from serving.config import Config, load_config
from serving.ports import free_port
from serving.tenancy.keys import NewKey
from serving.tenancy.store import KeyStore

NUM_TOKENS = 64
START_TIMEOUT_S = 400.0
MODEL = "ballast-demo"


@dataclass(frozen=True, slots=True)
class Server:
    """The two ways to one engine, and the processes on them."""

    raw: Target
    ballast: Target
    pids: dict[str, tuple[int, ...]]

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far of the gateway, HAProxy, the replica, and the engine's processes behind it."""
        return {name: sum(processes.cpu_s(pid) for pid in pids) for name, pids in self.pids.items()}


@dataclass(frozen=True, slots=True)
class Cell:
    """One round at one concurrency: both paths, back to back."""

    concurrency: int
    raw_chunks_per_s: float
    ballast_chunks_per_s: float
    raw_tokens_per_s: float
    ballast_tokens_per_s: float
    raw_ttft_p50_ms: float
    ballast_ttft_p50_ms: float
    raw_cpu_us_per_chunk: float
    ballast_cpu_us_per_chunk: float
    replica_us_per_chunk: float
    raw_replica_us_per_chunk: float
    gateway_us_per_chunk: float
    haproxy_us_per_chunk: float
    num_failures: int

    @property
    def ratio(self) -> float:
        return self.ballast_chunks_per_s / self.raw_chunks_per_s

    @property
    def token_ratio(self) -> float:
        """As ``ratio``, in tokens: engines that fall behind put several tokens into one chunk."""
        return self.ballast_tokens_per_s / self.raw_tokens_per_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0. Raises ConfigError for a wrong file, and what the servers' starts raise."""
    parser = argparse.ArgumentParser(
        prog="ballast bench overhead",
        description=__doc__,
        epilog="Exit codes: 0 measured; 1 a server did not start; 2 the config is wrong. "
        "Example: ballast bench overhead --concurrency 1 32 --rounds 3 --json overhead.json",
    )
    parser.add_argument("--json", type=Path, help="write the rounds and the medians to this file")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds per concurrency (one more warms up)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--config", type=Path, default=Path(__file__).resolve().parent.parent / "ballast.yaml")
    chosen = parser.parse_args(arguments)
    head = environment.describe()
    footprint = measure_footprint()
    with serving(chosen.config) as server:
        cells = uvloop.run(measure(server, chosen.concurrency, chosen.rounds))
    summary = [summarise(concurrency, cells) for concurrency in chosen.concurrency]
    print_table(summary, footprint)
    if chosen.json:
        result = {**head, "summary": summary, "footprint": footprint, "rounds": [asdict(cell) for cell in cells]}
        environment.write(chosen.json, result)
    return 0


@contextlib.contextmanager
def serving(config_path: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as state_dir:
        config, key = private_server(config_path, Path(state_dir))
        raw_port = free_port()
        cluster = Cluster(config)
        try:
            cluster.start()
            from serving.deployments import engine_args

            model = config.models[0]
            cluster.deploy(
                "benchmarks.raw_engine:build", engine_args(config, model, model.pools[0]) | {"raw_port": raw_port}
            )
            status = wait_until_ready(config.server.admin_port)
            yield Server(
                Target(raw_port, model.name), Target(config.server.port, model.name, key), process_ids(status, cluster)
            )
        finally:
            cluster.stop()


def private_server(config_path: Path, state_dir: Path) -> tuple[Config, str]:
    """The config with ports and state of its own, and a key, so that the key check is part of what is measured."""
    loaded = load_config(config_path)
    ports = {"port": free_port(), "admin_port": free_port(), "state_dir": state_dir, "log_level": "info"}
    config = loaded.model_copy(update={"server": loaded.server.model_copy(update=ports)})
    with KeyStore.open(state_dir) as store:
        minted, _ = store.create(NewKey("benchmark"), os.urandom, time.time())
    return config, minted.plaintext


def process_ids(status: dict[str, Any], cluster: Cluster) -> dict[str, tuple[int, ...]]:
    replica = status["replicas"][0]["pid"]
    return {
        "gateway": (status["gateway_pid"],),
        "haproxy": tuple(processes.named(f"haproxy -db -f {cluster.runtime_dir}")),
        "replica": (replica,),
        "engine": tuple(processes.children([replica])),
    }


def wait_until_ready(admin_port: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{admin_port}/admin/status", timeout=2) as answer:
            status: dict[str, Any] = json.load(answer)
            if status["ready"]:
                return status
        time.sleep(0.5)
    raise TimeoutError(f"the server was not ready within {START_TIMEOUT_S:g} s")


async def measure(server: Server, concurrencies: list[int], num_rounds: int) -> list[Cell]:
    cells = []
    for concurrency in concurrencies:
        for index in range(num_rounds + 1):
            cell = await measure_cell(server, concurrency, index)
            if index:  # the first one warms up
                cells.append(cell)
                print(f"C={concurrency:<3} round {index}/{num_rounds}  ratio {cell.ratio:.3f}", file=sys.stderr)
    return cells


async def measure_cell(server: Server, concurrency: int, index: int) -> Cell:
    num_streams_each = max(3, 24 // concurrency)
    rounds: dict[str, Round] = {}
    us: dict[str, dict[str, float]] = {}
    for name, target in [("raw", server.raw), ("ballast", server.ballast)][:: 1 if index % 2 else -1]:
        before = server.cpu_s()
        rounds[name] = await run_round(target, concurrency, num_streams_each, NUM_TOKENS, f"{name}{index}")
        after = server.cpu_s()
        us[name] = {part: (after[part] - before[part]) / rounds[name].num_chunks * 1e6 for part in after}
    return Cell(
        concurrency=concurrency,
        raw_chunks_per_s=rounds["raw"].chunks_per_s,
        ballast_chunks_per_s=rounds["ballast"].chunks_per_s,
        raw_tokens_per_s=rounds["raw"].num_whole * NUM_TOKENS / rounds["raw"].duration_s,
        ballast_tokens_per_s=rounds["ballast"].num_whole * NUM_TOKENS / rounds["ballast"].duration_s,
        raw_ttft_p50_ms=statistics.median(rounds["raw"].ttft_s) * 1e3,
        ballast_ttft_p50_ms=statistics.median(rounds["ballast"].ttft_s) * 1e3,
        raw_cpu_us_per_chunk=sum(us["raw"].values()),
        ballast_cpu_us_per_chunk=sum(us["ballast"].values()),
        replica_us_per_chunk=us["ballast"]["replica"],
        raw_replica_us_per_chunk=us["raw"]["replica"],
        gateway_us_per_chunk=us["ballast"]["gateway"],
        haproxy_us_per_chunk=us["ballast"]["haproxy"],
        num_failures=sum(len(found.failures) for found in rounds.values()),
    )


def summarise(concurrency: int, cells: list[Cell]) -> dict[str, float]:
    """Medians over rounds; ``ratio`` is the median of the rounds' ratios."""
    own = [cell for cell in cells if cell.concurrency == concurrency]
    names = [name for name in asdict(own[0]) if name not in ("concurrency", "num_failures")]
    medians = {name: round(statistics.median(getattr(cell, name) for cell in own), 3) for name in names}
    return {
        "concurrency": concurrency,
        "num_rounds": len(own),
        "ratio": round(statistics.median(cell.ratio for cell in own), 4),
        "token_ratio": round(statistics.median(cell.token_ratio for cell in own), 4),
        "ttft_p50_added_ms": round(
            statistics.median(cell.ballast_ttft_p50_ms - cell.raw_ttft_p50_ms for cell in own), 3
        ),
        **medians,
        "num_failures": sum(cell.num_failures for cell in own),
    }


_FOOTPRINT = """
import time
from pathlib import Path
import {base}
rss_mib = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
before, started = rss_mib(), time.perf_counter()
import {module}
print(rss_mib() - before, time.perf_counter() - started)
"""


def measure_footprint(repeats: int = 5) -> dict[str, float]:
    """What importing the gateway adds to an empty Ray Serve replica, median of several fresh processes."""
    code = _FOOTPRINT.format(base="ray.serve._private.replica", module="serving.gateway.ingress")
    runs = []
    for _ in range(repeats):
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        runs.append([float(word) for word in output.split()])
    return {
        "import_added_mib": round(statistics.median(run[0] for run in runs), 1),
        "import_added_s": round(statistics.median(run[1] for run in runs), 3),
    }


def print_table(summary: list[dict[str, float]], footprint: dict[str, float]) -> None:
    columns = ("raw", "Ballast", "ratio", "tokens", "raw", "Ballast", "raw", "Ballast", "gateway", "HAProxy", "failed")
    names = (
        "raw_chunks_per_s", "ballast_chunks_per_s", "ratio", "token_ratio", "raw_ttft_p50_ms", "ballast_ttft_p50_ms",
        "raw_cpu_us_per_chunk", "ballast_cpu_us_per_chunk", "gateway_us_per_chunk", "haproxy_us_per_chunk",
        "num_failures",
    )  # fmt: skip
    print(f"{'':>4}{'chunks/s and ratios to raw':>36}{'TTFT p50 (ms)':>18}{'CPU per chunk (µs)':>36}")
    print(f"{'C':>4}" + "".join(f"{column:>9}" for column in columns))
    for row in summary:
        print(f"{row['concurrency']:>4}" + "".join(f"{row[name]:>9.4g}" for name in names))
    print(f"Import on top of an empty replica: {footprint['import_added_mib']} MiB, {footprint['import_added_s']} s")


if __name__ == "__main__":
    sys.exit(main())
