"""``ballast bench serve``: one rate, one number of clients, one trace or one profile, measured."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.mistake import GeneratorTooSlow
from benchmarks.runs import document as documents
from benchmarks.runs import words
from benchmarks.runs.live import View, quiet
from benchmarks.runs.options import Plan, add_load, add_outcome, add_target, add_workload, check_load, make_plan, span_s
from benchmarks.runs.round import run_round

SLO_MISSED_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="ballast bench serve",
        description="Send load to any OpenAI-compatible server, and say how it served.",
        epilog="Exit codes: 0 measured; 1 the SLO was missed; 2 an option or the target is wrong; 3 the generator was "
        "the bottleneck; 130 interrupted, what was measured is kept. Example: ballast bench serve --rate 5 "
        "--duration 60s --slo ttft=500ms,tpot=50ms",
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
    plan = make_plan(options)
    folder = documents.new_folder("serve", options.out)
    document = start_document("serve", given, plan)
    title = _title(options)
    interrupted = False
    try:
        with View(title, span_s(options)) as view:
            for number in range(options.rounds):
                view.retitle(f"{title}, round {number + 1} of {options.rounds}" if options.rounds > 1 else title)
                found = run_round(plan, folder, number, options.rate, quiet if options.json else view)
                document["rounds"].append(found.document)
                interrupted = found.is_interrupted
                documents.write(folder, document)
                if interrupted:
                    break
    except KeyboardInterrupt:  # before a round's first request could leave, or after its last: that round is lost
        interrupted = True
    return finish(document, folder, plan, interrupted)


def start_document(kind: str, given: Sequence[str], plan: Plan) -> documents.Document:
    """A document with no round yet."""
    return {
        **documents.head(kind, given),
        "target": {"url": plan.target.url, "model": plan.speech.model, "endpoint": plan.speech.endpoint},
        "load": plan.description,
        "slo": plan.slo.document(),
        "rounds": [],
    }


def finish(document: documents.Document, folder: Path, plan: Plan, interrupted: bool) -> int:
    """Write, print, judge. Raises GeneratorTooSlow when a round measured the generator."""
    rounds: list[dict[str, Any]] = document["rounds"]
    complaint = next((each["generator"]["complaint"] for each in rounds if each["generator"]["complaint"]), None)
    document["status"] = "interrupted" if interrupted else "generator was the bottleneck" if complaint else "complete"
    path = write_out(document, folder, plan.options.report)
    if plan.options.json:
        print(json.dumps(document))
    else:
        console = words.terminal()
        for each in rounds:
            console.print(words.render(each))
        console.print(f"{'Interrupted: kept what there was in' if interrupted else 'Written to'} {path}", style="dim")
    if interrupted:
        return INTERRUPTED_EXIT_CODE
    if complaint:
        raise GeneratorTooSlow(complaint)
    is_held = all(each["goodput"] and each["goodput"]["is_slo_held"] for each in rounds)
    return 0 if is_held else SLO_MISSED_EXIT_CODE


def write_out(document: documents.Document, folder: Path, has_report: bool) -> Path:
    """``run.json``, and the report where it is wanted; the document's path."""
    path = documents.write(folder, document)
    if has_report:
        from benchmarks.report.page import write_report  # needs matplotlib, which measuring does not

        write_report(documents.read(folder))
    return path


def _title(options: argparse.Namespace) -> str:
    if options.concurrency is not None:
        return f"{options.concurrency} clients"
    if options.trace is not None:
        return str(options.trace.name) + (f" at {options.rate:g}/s" if options.rate else "")
    return f"{options.rate:g} requests/s" if options.rate is not None else str(options.phases)
