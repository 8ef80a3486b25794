"""``ballast bench soak``: the same load for hours, and whether memory, descriptors or threads grow meanwhile."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from benchmarks.load.mistake import BenchError, GeneratorTooSlow
from benchmarks.runs import document as documents
from benchmarks.runs import words
from benchmarks.runs.leak import slope_of
from benchmarks.runs.live import View, quiet
from benchmarks.runs.options import add_load, add_outcome, add_target, add_workload, check_load, make_plan, span_s
from benchmarks.runs.round import run_round
from benchmarks.runs.serve import INTERRUPTED_EXIT_CODE, finish, start_document, write_out

LEAK_EXIT_CODE = 1
LEAST_GROWTH_PER_HOUR = {"rss_mib": 16.0, "num_fds": 10.0, "num_threads": 4.0, "num_processes": 1.0}
"""What is no leak though it grows: allocators settle for hours, and pools of connections fill."""
LEAST_SETTLED_S = 600.0
"""What has to be looked at: a server that has just begun to work grows, and by the hour that is gigabytes."""
_SETTLED_AFTER = 1.0 / 3.0
"""Share of the run that is left out of the slopes: caches fill first."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="ballast bench soak",
        description="Send the same load for long, and say whether the server's memory, descriptors or threads grow.",
        epilog="Exit codes: 0 nothing grows; 1 something does, or the SLO was missed; 2 an option or the target is "
        "wrong; 3 the generator was the bottleneck; 130 interrupted. "
        "Example: ballast bench soak --config ballast.yaml --rate 2 --duration 4h",
    )
    add_target(options)
    add_workload(options)
    add_load(options)
    add_outcome(options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Raises BenchError, GeneratorTooSlow."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    check_load(options)
    if options.rounds != 1:
        raise BenchError("a soak is one long round: leave out --rounds, and say how long with --duration")
    plan = make_plan(options)
    if plan.source.pid is None:
        raise BenchError("a soak looks at the server's processes: name one with --server-pid, or its --config")
    folder = documents.new_folder("soak", options.out)
    document = start_document("soak", given, plan)
    try:
        with View("soak", span_s(options)) as view:
            found = run_round(plan, folder, 0, options.rate, quiet if options.json else view)
    except KeyboardInterrupt:
        return finish(document, folder, plan, interrupted=True)
    document["rounds"].append(found.document)
    document["leaks"] = leaks(found.document["timeline"])
    stopped = "interrupted" if found.is_interrupted else None
    document["status"] = stopped or ("generator was the bottleneck" if found.complaint else "complete")
    path = write_out(document, folder, options.report)
    if options.json:
        print(json.dumps(document))
    else:
        _print(document, str(path))
    if found.is_interrupted:
        return INTERRUPTED_EXIT_CODE
    if found.complaint:
        raise GeneratorTooSlow(found.complaint)
    is_held = bool(found.document["goodput"]) and found.document["goodput"]["is_slo_held"]
    return 0 if is_held and not any(entry["is_leak"] for entry in document["leaks"].values()) else LEAK_EXIT_CODE


def leaks(timeline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By what is counted: growth per hour with its interval, and whether it is a leak; without what could not be read,
    and empty of too short a time."""
    samples = [sample for sample in timeline if "num_processes" in sample]
    if not samples:
        return {}
    begin_s, end_s = samples[0]["at_s"], samples[-1]["at_s"]
    settled = [sample for sample in samples if sample["at_s"] >= begin_s + _SETTLED_AFTER * (end_s - begin_s)]
    if settled[-1]["at_s"] - settled[0]["at_s"] < LEAST_SETTLED_S:
        return {}
    found = {}
    for name, least in LEAST_GROWTH_PER_HOUR.items():
        rng = np.random.default_rng(0)
        known = [sample for sample in settled if name in sample]
        slope = slope_of([sample["at_s"] for sample in known], [sample[name] for sample in known], rng)
        if slope is not None:
            found[name] = {
                "per_hour": round(slope.per_hour, 3),
                "ci95_per_hour": [round(slope.low, 3), round(slope.high, 3)],
                "level": round(slope.level, 3),
                "least_of_interest_per_hour": least,
                "is_leak": slope.grows(least),
            }
    return found


def _print(document: documents.Document, path: str) -> None:
    console = words.terminal()
    console.print(words.render(document["rounds"][0]))
    labels = {name: label for name, (label, _) in words.GROWTH_LABELS.items()}
    grown = [labels[name] for name, entry in document["leaks"].items() if entry["is_leak"]]
    if not document["leaks"]:
        console.print(Text("too short to say whether anything grows: a quarter of an hour at least", style="yellow"))
    else:
        said = f"GROWS: {', '.join(grown)}" if grown else "nothing grows"
        console.print(Text(said, style="bold red" if grown else "bold green"))
        table = Table(*words.GROWTH_HEADER, box=None, pad_edge=False, padding=(0, 2))
        for row in words.growth_rows(document["leaks"]):
            table.add_row(*row)
        console.print(table)
        if unread := [label for name, label in labels.items() if name not in document["leaks"]]:
            why = "may not be read here; measure as the server's user"
            console.print(Text(f"not known of {', '.join(unread)}: {why}", style="yellow"))
    console.print(f"Written to {path}", style="dim")
