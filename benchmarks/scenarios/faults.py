"""Things that break, while requests come in: ``python -m benchmarks.scenarios.faults [--only F1,F3] [--json FILE]``.

Each fault of ``benchmarks/faults`` is a row of a table: what was done to a server under steady open-loop traffic, how
many requests that it could have hit succeeded and failed, the latency before and after, and how long until all was
well again. Faults that can share a server do.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import environment
from benchmarks.faults import demand, engines, gateways, scaling
from benchmarks.faults.fault import HEAD, Fault, Outcome, document, row_of
from benchmarks.faults.gateways import server_stopped
from benchmarks.faults.sites import BY_HAND, REAL, SCRIPTED, stage
from benchmarks.faults.stage import BENCHMARK, QUICK, Pace

FAULTS = sorted(
    (*engines.FAULTS, *gateways.FAULTS, *demand.FAULTS, *scaling.FAULTS),
    key=lambda fault: (fault.play is server_stopped, int(fault.row[1:])),
)
"""By their number; what ends a server comes last."""


def main() -> int:
    """Returns 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenarios.faults", description=__doc__)
    parser.add_argument("--only", metavar="ROW,ROW", help="rows of faults.md: F1,F3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to this file")
    parser.add_argument("--quick", action="store_true", help="as short as the tests have it")
    arguments = parser.parse_args()
    head = environment.describe()
    rows = set(arguments.only.split(",")) if arguments.only else {fault.row for fault in FAULTS}
    played = play([fault for fault in FAULTS if fault.row in rows], QUICK if arguments.quick else BENCHMARK)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**head, "faults": document(played)}, indent=1) + "\n")
    return 1 if any(outcome.broken for _, outcome in played) else 0


def play(faults: Iterable[Fault], pace: Pace) -> list[tuple[Fault, Outcome]]:
    """One server after the other, each with the faults that are for it; prints each row as it is known."""
    wanted = list(faults)
    played: list[tuple[Fault, Outcome]] = []
    print(HEAD)
    for site in (REAL, SCRIPTED, BY_HAND):
        own = [fault for fault in wanted if fault.site == site]
        if own:
            with stage(site, pace) as running:
                for fault in own:
                    outcome = asyncio.run(fault.play(running))
                    print(row_of(fault, outcome), flush=True)
                    played.append((fault, outcome))
    return played


if __name__ == "__main__":
    sys.exit(main())
