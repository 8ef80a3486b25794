"""Things that break, while requests come in: ``python -m benchmarks.scenarios.faults [--only F1,F3] [--json FILE]``.

Each fault of ``benchmarks/faults`` is a row of a table: what was done to a server under steady open-loop traffic, how
many requests that it could have hit succeeded and failed, the latency before and after, and how long until all was
well again. Faults that can share a server do.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
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
    """Returns 1 when a promise did not hold. Exits with 2 when it is asked for a row that there is none of."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenarios.faults", description=__doc__)
    parser.add_argument("--only", metavar="ROW,ROW", help="only these: F1,F3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to this file, or its rows of it")
    parser.add_argument("--quick", action="store_true", help="as short as the tests have it")
    arguments = parser.parse_args()
    known = list(dict.fromkeys(fault.row for fault in FAULTS))
    rows = arguments.only.split(",") if arguments.only is not None else known
    if missing := [row for row in rows if row not in known]:
        parser.error(f"--only: no row '{missing[0]}'; there are {', '.join(known)}")
    head = environment.describe()
    played: list[tuple[Fault, Outcome]] = []
    print(HEAD)
    try:
        for fault, outcome in play(
            [each for each in FAULTS if each.row in rows], QUICK if arguments.quick else BENCHMARK
        ):
            print(row_of(fault, outcome), flush=True)
            played.append((fault, outcome))
    finally:
        if arguments.json:
            _write(arguments.json, head, document(played))
    return 1 if any(outcome.broken for _, outcome in played) else 0


def play(faults: Iterable[Fault], pace: Pace) -> Iterator[tuple[Fault, Outcome]]:
    """One server after the other, each with the faults that are for it."""
    wanted = list(faults)
    for site in (REAL, SCRIPTED, BY_HAND):
        if own := [fault for fault in wanted if fault.site == site]:
            with stage(site, pace) as running:
                for fault in own:
                    yield fault, asyncio.run(fault.play(running))


def _write(path: Path, head: Mapping[str, object], rows: list[dict[str, object]]) -> None:
    """Rows that were not played now stay as they are: all of them together take longer than one may want to wait."""
    former = json.loads(path.read_text())["faults"] if path.exists() else []
    known = {(row["row"], row["name"]): row for row in [*former, *rows]}
    order = {(fault.row, fault.name): index for index, fault in enumerate(FAULTS)}
    kept = sorted((key for key in known if key in order), key=order.__getitem__)
    environment.write(path, {**head, "faults": [known[key] for key in kept]})


if __name__ == "__main__":
    sys.exit(main())
