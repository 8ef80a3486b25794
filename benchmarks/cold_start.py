"""How long until an engine answers: ``python -m benchmarks.cold_start [--json FILE]``.

Each round starts three things in turn, on a node that has started them before, and stops the clock at the first
answered chat request:

    stock     vLLM's own server with the same engine arguments, from its exec
    replica   a replica of a running Ballast server, from the death of the one before
    server    all of Ballast (`ballast up`), from its exec

What a replica does meanwhile is split into its steps, from its own account (`serving/replica/progress.py`).
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import yaml

from benchmarks import environment, processes
from benchmarks.overhead import private_server, wait_until_ready
from serving.config import Config
from serving.config.pool import CpuPool
from serving.lifecycle.processes import processes_of
from serving.lifecycle.record import ServerRecord
from serving.ports import free_port
from serving.replica import progress

TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02
PLACEMENT, FIRST_ANSWER = "placement", "first answer"
"""From the death to the new process, and from its being ready to the first answer; the steps lie in between."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round: seconds until the first answer, the replica's start by steps, and the memory of what then runs, with
    shared pages counted in proportion.
    """

    stock_s: float
    server_s: float
    replica_s: float
    steps: Mapping[str, float]
    memory_mib: Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rounds and the medians to this file")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (one more warms the caches)")
    parser.add_argument("--config", type=Path, default=Path(__file__).resolve().parent.parent / "ballast.yaml")
    arguments = parser.parse_args()
    head = environment.describe()
    samples = []
    for index in range(arguments.rounds + 1):
        sample = measure(arguments.config)
        print(
            f"round {index}/{arguments.rounds}: stock {sample.stock_s:.1f} s, replica {sample.replica_s:.1f} s, "
            f"server {sample.server_s:.1f} s{'' if index else ' (warms up)'}",
            file=sys.stderr,
        )
        samples += [sample] if index else []
    summary = summarise(samples)
    print_table(summary)
    if arguments.json:
        result = {**head, "summary": summary, "rounds": [asdict(sample) for sample in samples]}
        environment.write(arguments.json, result)


def measure(config_path: Path) -> Sample:
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as state_dir:
        config, key = private_server(config_path, Path(state_dir))
        stock_s = measure_stock(config)
        with running_server(config, Path(state_dir), key) as server_s:
            replica_s, steps = measure_replica(config, key)
            memory_mib = measure_memory(config)
    return Sample(stock_s, server_s, replica_s, steps, memory_mib)


def measure_stock(config: Config) -> float:
    """vLLM's own server with the arguments that Ballast gives to its first pool's engine."""
    model, port = config.models[0], free_port()
    pool = model.pools[0]
    assert isinstance(pool, CpuPool), "this compares engines on CPU"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model.source,
        "--served-model-name", model.name, "--host", "127.0.0.1", "--port", str(port),
        "--kv-cache-memory-bytes", str(pool.engine.kv_cache_bytes), "--max-num-seqs", str(pool.engine.max_num_seqs),
        *(["--enforce-eager"] if pool.engine.enforce_eager else []),
    ]  # fmt: skip
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    began_s = time.monotonic()
    with ended_after(subprocess.Popen(command, env={**os.environ, **quiet}, stdout=2)) as process:
        first_answer(port, model.name, None, process)
        return time.monotonic() - began_s


@contextlib.contextmanager
def running_server(config: Config, state_dir: Path, key: str) -> Iterator[float]:
    """`ballast up`; gives the seconds until its first answer."""
    path = state_dir / "ballast.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "serving.cli", "up", "--config", str(path)]
    began_s = time.monotonic()
    with ended_after(subprocess.Popen(command, stdout=2)) as process:
        first_answer(config.server.port, config.models[0].name, key, process)
        yield time.monotonic() - began_s


@contextlib.contextmanager
def ended_after(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def measure_replica(config: Config, key: str) -> tuple[float, dict[str, float]]:
    """Kill the one replica; seconds until the next one has answered, and how they were spent."""
    [replica] = wait_until_ready(config.server.admin_port)["replicas"]
    folder = runtime_dir(config) / progress.FOLDER
    former = set(folder.glob("*/*"))
    began_s = time.time()
    os.kill(int(replica["pid"]), signal.SIGKILL)
    first_answer(config.server.port, config.models[0].name, key)
    ended_s = time.time()
    [path] = set(folder.glob("*/*")) - former
    steps = progress.split([(began_s, PLACEMENT), *progress.read_steps(path), (ended_s, "")])
    steps[FIRST_ANSWER] = steps.pop(progress.READY)
    return ended_s - began_s, steps


def measure_memory(config: Config) -> dict[str, float]:
    [replica] = wait_until_ready(config.server.admin_port)["replicas"]
    pid = int(replica["pid"])
    [zygote] = set(processes.named("ballast-zygote")) & processes_of(runtime_dir(config))
    pss_bytes = {"replica": [pid, *processes.children([pid])], "zygote": [zygote]}
    return {name: round(sum(map(processes.pss_bytes, pids)) / 2**20, 1) for name, pids in pss_bytes.items()}


def runtime_dir(config: Config) -> Path:
    record = ServerRecord.read(config.server.state_dir)
    assert record is not None, "the server runs"
    return Path(record.runtime_dir)


def first_answer(port: int, model: str, key: str | None, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Ask until somebody answers. Raises TimeoutError, and RuntimeError when ``process`` ends."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0}
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    request = Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(URLError, ConnectionError), urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            json.load(answer)
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"no answer within {TIMEOUT_S:g} s")


def summarise(samples: list[Sample]) -> dict[str, object]:
    """Medians over rounds; ``ratio`` is the median of the rounds' ratios."""
    steps = samples[0].steps
    return {
        "num_rounds": len(samples),
        "stock_s": median(sample.stock_s for sample in samples),
        "replica_s": median(sample.replica_s for sample in samples),
        "server_s": median(sample.server_s for sample in samples),
        "replica_ratio": median(sample.replica_s / sample.stock_s for sample in samples),
        "server_ratio": median(sample.server_s / sample.stock_s for sample in samples),
        "replica_steps_s": {step: median(sample.steps[step] for sample in samples) for step in steps},
        "memory_mib": {name: median(sample.memory_mib[name] for sample in samples) for name in samples[0].memory_mib},
    }


def median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)


def print_table(summary: Mapping[str, object]) -> None:
    steps = summary["replica_steps_s"]
    assert isinstance(steps, dict)
    for step, seconds in steps.items():
        print(f"{step:>14}{seconds:>8.2f} s")
    for name in ("replica", "server", "stock"):
        ratio = summary.get(f"{name}_ratio")
        print(f"{name:>14}{summary[f'{name}_s']:>8.2f} s" + (f"   {ratio:.2f} × stock" if ratio is not None else ""))
    print(f"memory (MiB): {summary['memory_mib']}")


if __name__ == "__main__":
    main()
