"""``ballast bench chaos``: things that break at planned times, while load is sent to a running Ballast.

Steady load tells what a server can do; this tells what a fault costs its clients, and how long. The faults are those of
`benchmarks/runs/marks.py`, how recovery is measured is in `benchmarks/runs/recovery.py`.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.load.mistake import BenchError, GeneratorTooSlow
from benchmarks.load.workers import Live
from benchmarks.runs import document as documents
from benchmarks.runs import words
from benchmarks.runs.live import View
from benchmarks.runs.marks import FORMS, Fault, Mark, Saboteur, Site, parse_fault
from benchmarks.runs.options import (
    Plan,
    add_load,
    add_outcome,
    add_target,
    add_workload,
    check_load,
    duration_s,
    find_record,
    is_at,
    make_plan,
    no_server,
    own_target,
    read_config,
    span_s,
)
from benchmarks.runs.recovery import effects
from benchmarks.runs.round import Round, run_round
from benchmarks.runs.serve import INTERRUPTED_EXIT_CODE, finish, start_document, write_out
from benchmarks.server import Server

NOT_RECOVERED_EXIT_CODE = 1


def parser() -> argparse.ArgumentParser:
    faults = "\n".join(f"  {form:20} {what}" for form, what in FORMS.items())
    options = argparse.ArgumentParser(
        prog="ballast bench chaos",
        description="Break a running Ballast at planned times while load is sent to it, and say what that cost.",
        epilog=f"faults:\n{faults}\n\n"
        "Exit codes: 0 recovered from every fault; 1 not from all, or one could not be made to happen; 2 an option or\n"
        "the target is wrong; 3 the generator was the bottleneck; 130 interrupted.\n\n"
        "Example: ballast bench chaos --config ballast.yaml --rate 4 --duration 2m --slo ttft=2s \\\n"
        "  --at 20s=kill-engine --at 60s=stop-engine:10s --at 90s=overload:3x,10s",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = options.add_argument_group("what breaks")
    group.add_argument("--at", type=_fault, action="append", default=[], metavar="TIME=FAULT", dest="faults",
                       help="a fault, so long after the first request could leave; as often as wanted")  # fmt: skip
    group.add_argument("--max-recovery", type=duration_s, metavar="TIME", help="what a recovery may take")
    add_target(options)
    add_workload(options)
    add_load(options)
    add_outcome(options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Raises BenchError, ConfigError, GeneratorTooSlow."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    check_load(options)
    check_faults(options)
    server = find_server(options)
    plan = make_plan(options)
    plan = replace(plan, surges=tuple(surge for fault in options.faults if (surge := fault.surge)))
    site = Site(server, plan.speech.model)
    for fault in options.faults:
        site.check(fault)
    folder = documents.new_folder("chaos", options.out)
    document = start_document("chaos", given, plan)
    try:
        with View("chaos", span_s(options)) as view:
            tell = (lambda _: None) if options.json else view.say
            with Saboteur(site, options.faults, tell) as saboteur:

                def watch(live: Live) -> None:
                    saboteur.begin(live.started_s)
                    if not options.json:
                        view(live)

                found = run_round(plan, folder, 0, options.rate, watch)
    except KeyboardInterrupt:
        return finish(document, folder, plan, interrupted=True)
    document["rounds"].append(found.document)
    found.document["marks"] = marks_of(found, saboteur.marks, plan)
    document["chaos"] = judge(found.document["marks"], options.max_recovery)
    return _finish(document, folder, found, plan)


def check_faults(options: argparse.Namespace) -> None:
    """Raises BenchError for faults that this load cannot have."""
    if not options.faults:
        raise BenchError("nothing breaks: name faults with --at, such as --at 10s=kill-engine; --help lists them")
    if options.rounds != 1:
        raise BenchError("a run with faults has one round; repeat the run instead")
    end_s = span_s(options)
    for fault in options.faults:
        if fault.planned_s <= options.warmup or (end_s is not None and fault.planned_s >= end_s):
            end = f" and before the end at {end_s:g} s" if end_s is not None else ""
            raise BenchError(
                f"{fault.planned_s:g}s={fault.name} has nothing to compare with: name a time after the warm-up's "
                f"{options.warmup:g} s{end}"
            )
        if fault.kind == "overload" and (options.concurrency is not None or options.trace is not None):
            raise BenchError("overload multiplies a rate: it needs --rate or --phases")


def find_server(options: argparse.Namespace) -> Server:
    """The server that runs from --config. Raises BenchError unless it runs here and is the one that load goes to."""
    if options.config is None:
        raise BenchError("faults happen to processes of this machine: name the running server's config with --config")
    config = read_config(options.config)
    if (record := find_record(config)) is None:
        raise BenchError(no_server(options.config))
    if not is_at(options.url, record):
        own = own_target(record).url
        raise BenchError(f"--url {options.url} is not the server of {options.config}, which is at {own}: leave it out")
    if os.geteuid() not in (0, os.stat(f"/proc/{record.pid}").st_uid):
        raise BenchError(f"the server (process {record.pid}) belongs to another user; break it as that user")
    return Server(record.port, record.admin_port, config.server.state_dir)


def marks_of(found: Round, marks: Sequence[Mark], plan: Plan) -> list[dict[str, Any]]:
    """The marks of what has happened with their effects, then those of what has not."""
    happened = [mark for mark in marks if mark.at_s is not None]
    happened.sort(key=lambda mark: mark.at_s or 0.0)
    seen = effects(found.rows, plan.slo, [mark.at_s or 0.0 for mark in happened])
    described = [{**mark.document, **effect.document} for mark, effect in zip(happened, seen, strict=True)]
    for each in described:
        if each["done_s"] is None and each["error"] is None:
            each["not_recovered_because"] = "it was still being done when the run ended; a longer --duration shows more"
    return [*described, *(mark.document for mark in marks if mark.at_s is None)]


def judge(marks: Sequence[dict[str, Any]], max_recovery_s: float | None) -> dict[str, Any]:
    """What holds for all marks together."""
    recoveries_s = [mark.get("recovery_s") for mark in marks]
    known_s = [each for each in recoveries_s if each is not None]
    in_time = [
        mark["error"] is None
        and mark["done_s"] is not None
        and recovery_s is not None
        and (max_recovery_s is None or recovery_s <= max_recovery_s)
        for mark, recovery_s in zip(marks, recoveries_s, strict=True)
    ]
    return {
        "num_faults": len(marks),
        "num_recovered": sum(in_time),
        "is_recovered": all(in_time),
        "max_recovery_s": max_recovery_s,
        "longest_recovery_s": max(known_s, default=None),
    }


def _finish(document: documents.Document, folder: Path, found: Round, plan: Plan) -> int:
    stopped = "interrupted" if found.is_interrupted else None
    document["status"] = stopped or ("generator was the bottleneck" if found.complaint else "complete")
    path = write_out(document, folder, plan.options.report)
    if plan.options.json:
        print(json.dumps(document))
    else:
        _print(document, str(path))
    if found.is_interrupted:
        return INTERRUPTED_EXIT_CODE
    if found.complaint:
        raise GeneratorTooSlow(found.complaint)
    return 0 if document["chaos"]["is_recovered"] else NOT_RECOVERED_EXIT_CODE


def _print(document: documents.Document, path: str) -> None:
    console = words.terminal()
    (found,) = document["rounds"]
    is_recovered = document["chaos"]["is_recovered"]
    console.print(Text(words.chaos_verdict(document), style="bold green" if is_recovered else "bold red"))
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for place, heading in enumerate(words.MARK_HEADER):
        table.add_column(heading, justify="left" if place == 1 else "right", no_wrap=place == 1)
    for row in words.mark_rows(found["marks"]):
        table.add_row(*row)
    console.print(table)
    for mark in found["marks"]:
        if mark["error"]:
            console.print(Text(f"{mark['name']} could not be done: {mark['error']}", style="red"))
        elif why := mark.get("not_recovered_because"):
            console.print(Text(f"{mark['name']} at {mark['at_s']:.1f} s: {why}", style="yellow"))
    console.print(words.render(found))
    console.print(f"{'Interrupted: kept what there was in' if document['status'] == 'interrupted' else 'Written to'} "
                  f"{path}", style="dim")  # fmt: skip


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except BenchError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
