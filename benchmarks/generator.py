"""What the load generator itself can do: ``python -m benchmarks.generator [--json FILE]``.

Two worker processes against the null server, which has to share the machine's cores with them, so that what is found is
less than two cores of generator alone can do; the CPU time of each side is told apart. Three cases, in turns:

- ``requests``: closed loop, one chunk per answer.
- ``chunks``: 640 streams, each chunk a packet of its own (the server steps as an engine does).
- ``both``: open loop, 5,000 requests a second with 20 chunks each, which the kernel may put into fewer packets.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment, processes
from benchmarks.load.arrivals import steady
from benchmarks.load.drive import Manner
from benchmarks.load.lengths import Lengths
from benchmarks.load.prompts import Speech
from benchmarks.load.schedule import Schedule, Workload, closed_schedule, open_schedule
from benchmarks.load.target import parse_target
from benchmarks.load.workers import Job, Live, send
from benchmarks.runs.rows import read_rows

NUM_WORKERS = 2
PROMPT = Lengths("fixed", 32)
CHUNKS_EACH = 20
GOAL_REQUESTS_PER_S, GOAL_CHUNKS_PER_S = 5_000, 100_000


@dataclass(frozen=True, slots=True)
class Case:
    """``server``: options of the null server."""

    name: str
    server: tuple[str, ...]
    schedule: Schedule
    manner: Manner


def cases(span_s: float) -> tuple[Case, ...]:
    def workload(num_chunks: int) -> Workload:
        return Workload(prompt=PROMPT, output=Lengths("fixed", num_chunks))

    return (
        Case("requests", (), closed_schedule(workload(1), 2**14, 1), Manner(concurrency=64, span_s=span_s)),
        Case("chunks", ("--engine-step-s", "0.005"), closed_schedule(workload(400), 2**12, 1),
             Manner(concurrency=640, span_s=span_s)),
        Case("both", (), open_schedule(workload(CHUNKS_EACH), steady(GOAL_REQUESTS_PER_S, span_s), "constant", 1),
             Manner(concurrency=2000)),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generator", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--span-s", type=float, default=6.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args(arguments)
    head = environment.describe()
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for case in cases(options.span_s):
            found.setdefault(case.name, []).append(measure(case))
            print(case.name, found[case.name][-1], flush=True)
    results = {name: {"median": _median(rounds), "rounds": rounds} for name, rounds in found.items()}
    if options.json:
        document = {**head, "num_workers": NUM_WORKERS, "prompt_words": int(PROMPT.middle_tokens), "cases": results}
        environment.write(options.json, document)
    return 0


def measure(case: Case) -> dict[str, Any]:
    """One round of one case. Raises AssertionError when an answer was not whole."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.null_server", *case.server], stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        used: list[tuple[float, float]] = []
        seen: list[tuple[int, int]] = []

        def watch(live: Live) -> None:
            used.append((_workers_cpu_s(server.pid), processes.cpu_s(server.pid)))
            seen.append((live.num_ended, live.num_events))

        with tempfile.TemporaryDirectory() as folder:
            job = Job(parse_target(f"http://127.0.0.1:{port}"), Speech("null", 1), case.manner, case.schedule, Path())
            sent = send(job, Path(folder), NUM_WORKERS, watch)
            rows = read_rows(sent.rows)
            begin_s, end_s = rows.span_s
        live, span_s = sent.live, end_s - begin_s
        assert live.num_failed == 0, f"{live.num_failed} answers were not whole: {rows.errors[0]}"
        # From the first report on: before it, the workers were starting.
        generator_cpu_s, server_cpu_s = (max(column) - column[0] for column in zip(*used, strict=True))
        num_ended, num_events = live.num_ended - seen[0][0], live.num_events - seen[0][1]
    finally:
        server.kill()
        server.communicate()
    return {
        "requests_per_s": round(live.num_ended / span_s, 1),
        "chunks_per_s": round(live.num_events / span_s, 1),
        "generator_cpu_us_per_request": round(1e6 * generator_cpu_s / num_ended, 2),
        "generator_cpu_us_per_chunk": round(1e6 * generator_cpu_s / num_events, 2),
        "server_cpu_us_per_chunk": round(1e6 * server_cpu_s / num_events, 2),
        "generator_cores": round(generator_cpu_s / span_s, 3),
        "server_cores": round(server_cpu_s / span_s, 3),
        **{name: value for name, value in asdict(sent.effort).items() if name != "num_workers"},
    }


def _workers_cpu_s(server_pid: int) -> float:
    """Of this process's workers so far, their start included."""
    found = 0.0
    for pid in processes.children([os.getpid()]):
        if pid != server_pid:
            try:
                found += processes.cpu_s(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def _median(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


if __name__ == "__main__":
    sys.exit(main())
