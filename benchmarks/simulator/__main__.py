"""What an autoscaler is worth, simulated: ``python -m benchmarks.simulator --trace FILE... [--policy ours,ray,…]``.

Prints a table per trace; ``--json`` writes everything; ``--report`` writes an HTML page with plots (needs matplotlib).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import environment
from benchmarks.simulator.contenders import CONTENDERS
from benchmarks.simulator.scenario import Scenario, ScenarioError, read_scenario
from benchmarks.simulator.study import Study, describe, study
from benchmarks.simulator.table import render
from benchmarks.simulator.trace import TraceError, read_trace
from benchmarks.simulator.verdict import Entry, judge, median_ratio, merge

SCENARIO = Path(__file__).parent / "scenarios" / "reference.yaml"
SCHEMA_VERSION = 1


def parser() -> argparse.ArgumentParser:
    """The options, for this command and for `ballast bench autoscale`."""
    options = argparse.ArgumentParser(
        prog="ballast bench autoscale",
        description=__doc__,
        epilog="Exit codes: 0 simulated; 2 there is no such trace, scenario or policy. "
        "Example: ballast bench autoscale --trace week.csv.gz --policy ours,ray,static --json autoscale.json",
    )
    options.add_argument("--trace", type=Path, nargs="+", required=True, metavar="FILE", help="request traces")
    options.add_argument(
        "--policy", default=",".join(CONTENDERS), help=f"comma-separated, of {', '.join(CONTENDERS)} (default: all)"
    )
    options.add_argument("--scenario", type=Path, default=SCENARIO, metavar="FILE", help="the fleet")
    options.add_argument("--seeds", type=int, default=5, help="runs of each chosen setting")
    options.add_argument("--from-h", type=float, default=0.0, metavar="HOURS", help="leave out what comes before")
    options.add_argument("--to-h", type=float, default=float("inf"), metavar="HOURS", help="leave out what comes after")
    options.add_argument("--cold-start-s", type=float, help="mean GPU cold start instead of the scenario's")
    options.add_argument("--shed", action="store_true", help="refuse what cannot meet its deadline")
    options.add_argument("--no-oracle", action="store_true", help="leave out the offline references")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    options.add_argument("--append", action="store_true", help="keep what the file says of other traces and settings")
    options.add_argument("--report", type=Path, metavar="FOLDER", help="write an HTML report with plots into it")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for a trace, a scenario or a policy that there is none of."""
    options = parser().parse_args(arguments)
    policies = options.policy.split(",")
    if unknown := sorted(set(policies) - set(CONTENDERS)):
        print(f"no policy {', '.join(unknown)}; there are {', '.join(CONTENDERS)}", file=sys.stderr)
        return 2
    head = environment.describe()
    try:
        scenario = _scenario(options)
        traces = [read_trace(path) for path in options.trace]
    except (ScenarioError, TraceError) as error:
        print(error, file=sys.stderr)
        return 2
    found: list[Study] = []
    entries: list[Entry] = []
    old = json.loads(options.json.read_text())["studies"] if options.append and options.json.exists() else []
    for trace in traces:
        if options.from_h > 0.0 or options.to_h < float("inf"):
            trace = trace.part(options.from_h * 3600.0, options.to_h * 3600.0)
        found.append(study(scenario, trace, policies, range(1, options.seeds + 1), not options.no_oracle))
        print(render(found[-1]), flush=True)
        entries = _merged(old, [describe(entry) for entry in found])
        _write(options, head, entries, found)  # after each trace: a study of days takes an hour
    _print_medians(entries)
    return 0


def _write(
    options: argparse.Namespace, head: dict[str, object], entries: Sequence[Entry], found: Sequence[Study]
) -> None:
    if options.json:
        document = {**head, "schema_version": SCHEMA_VERSION, "studies": entries}
        environment.write(options.json, document)
    if options.report:
        from benchmarks.simulator.report import write_report

        write_report(options.report, head, found)


def _scenario(options: argparse.Namespace) -> Scenario:
    scenario = read_scenario(options.scenario)
    if options.shed:
        scenario = scenario.model_copy(update={"is_shedding": True})
    if options.cold_start_s is not None:
        scenario = scenario.with_cold_start(scenario.primary.name, options.cold_start_s)
    return scenario


def _merged(before: Sequence[Entry], studies: Sequence[Entry]) -> list[Entry]:
    """``studies`` put together with those of earlier runs, each with its verdict."""
    old = {_key(entry): entry for entry in before}
    for entry in studies:
        earlier = old.get(_key(entry))
        old[_key(entry)] = merge(earlier, entry) if earlier else entry
    return [{**entry, "verdict": judge(entry)} for entry in old.values()]


def _print_medians(entries: Sequence[Entry]) -> None:
    verdicts = [entry["verdict"] for entry in entries if entry["verdict"]]
    for label, name in (
        ("Ray Serve's policy in hindsight, with our router", "to_ray_in_hindsight"),
        ("Ray Serve in hindsight, with its own router", "to_stock_ray_in_hindsight"),
        ("Ray Serve's literal defaults", "to_ray_default"),
    ):
        if median := median_ratio(verdicts, name):
            print(f"cost against {label}: median {median[0] - 1.0:+.1%} over {median[1]} traces")


def _key(entry: Entry) -> tuple[str, str, bool]:
    return str(entry["trace"]), json.dumps(entry["cold_start_s"]), bool(entry["is_shedding"])


if __name__ == "__main__":
    sys.exit(main())
