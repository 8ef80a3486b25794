"""Many streams through one gateway: ``python -m benchmarks.concurrency [--json FILE]``.

Scripted engines make the tokens, so that the gateway is what is measured. Rounds of few (32) and of many (1,000)
streams alternate. Reported are streams lost, the gateway's CPU time per chunk, and its memory after the rounds.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from benchmarks import environment, processes
from benchmarks.load.streams import Target, run_round
from benchmarks.overhead import private_server, wait_until_ready
from serving.cluster import Cluster

NUM_TOKENS = 64
FEW, MANY = 32, 1000
#: Time between two tokens of a stream. Many streams make more chunks than this machine can carry, few do not: each gets
#: as fast as it can then, which is what a flood looks like.
STEP_S = 0.012


@dataclass(frozen=True, slots=True)
class Cell:
    """One round. ``num_lost`` counts streams that did not arrive whole."""

    concurrency: int
    num_streams: int
    num_lost: int
    chunks_per_s: float
    gateway_us_per_chunk: float
    gateway_rss_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concurrency", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rounds and the summary to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", type=Path, default=Path(__file__).resolve().parent.parent / "ballast.yaml")
    arguments = parser.parse_args()
    head = environment.describe()
    cells = run(arguments.config, arguments.rounds)
    summary = [summarise([cell for cell in cells if cell.concurrency == size]) for size in (FEW, MANY)]
    for row in summary:
        print("   ".join(f"{name} {value:g}" for name, value in row.items()))
    if arguments.json:
        result = {**head, "summary": summary, "rounds": [asdict(cell) for cell in cells]}
        environment.write(arguments.json, result)


def run(config_path: Path, num_rounds: int) -> list[Cell]:
    """Few and many streams in turn, ``num_rounds`` times after one that warms up."""
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as state_dir:
        config, key = private_server(config_path, Path(state_dir))
        cluster = Cluster(config)
        try:
            cluster.start()
            cluster.deploy("scripted", {"step_s": STEP_S, "max_num_seqs": 2 * MANY})
            gateway_pid = int(wait_until_ready(config.server.admin_port)["gateway_pid"])
            target = Target(config.server.port, config.models[0].name, key)
            cells = []
            for index in range(num_rounds + 1):
                pair = [uvloop.run(measure(target, gateway_pid, size, f"r{index}")) for size in (FEW, MANY)]
                if index:
                    cells.extend(pair)
                    print(
                        f"round {index}/{num_rounds}: {[round(cell.gateway_us_per_chunk, 1) for cell in pair]} µs",
                        file=sys.stderr,
                    )
            return cells
        finally:
            cluster.stop()


async def measure(target: Target, gateway_pid: int, concurrency: int, tag: str) -> Cell:
    num_streams_each = max(1, 4 * FEW // concurrency)
    before_s = processes.cpu_s(gateway_pid)
    found = await run_round(target, concurrency, num_streams_each, NUM_TOKENS, tag)
    spent_s = processes.cpu_s(gateway_pid) - before_s
    return Cell(
        concurrency=concurrency,
        num_streams=concurrency * num_streams_each,
        num_lost=concurrency * num_streams_each - found.num_whole,
        chunks_per_s=found.chunks_per_s,
        gateway_us_per_chunk=spent_s / found.num_chunks * 1e6,
        gateway_rss_mib=processes.rss_bytes(gateway_pid) / 2**20,
    )


def summarise(cells: list[Cell]) -> dict[str, float]:
    """Medians over rounds; losses are summed, and memory is given as it was after the first and the last round."""
    return {
        "concurrency": cells[0].concurrency,
        "num_streams": sum(cell.num_streams for cell in cells),
        "num_lost": sum(cell.num_lost for cell in cells),
        "chunks_per_s": round(statistics.median(cell.chunks_per_s for cell in cells), 1),
        "gateway_us_per_chunk": round(statistics.median(cell.gateway_us_per_chunk for cell in cells), 2),
        "gateway_rss_first_mib": round(cells[0].gateway_rss_mib, 1),
        "gateway_rss_last_mib": round(cells[-1].gateway_rss_mib, 1),
    }


if __name__ == "__main__":
    main()
