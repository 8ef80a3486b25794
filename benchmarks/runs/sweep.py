"""``ballast bench sweep``: where is the knee, and what is the highest rate that holds the SLO?

A search rather than a grid: double the rate until the SLO is missed, halve the gap until it is as narrow as asked, then
repeat the two rates on either side, so that the interval rests on more than one round each.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from benchmarks.load.mistake import BenchError, GeneratorTooSlow
from benchmarks.runs import document as documents
from benchmarks.runs import words
from benchmarks.runs.intervals import NUM_BLOCKS, draw_weights, interval
from benchmarks.runs.knee import Estimate, Point, edge, highest_rate, knee, next_rate
from benchmarks.runs.live import View, quiet
from benchmarks.runs.options import Plan, add_load, add_outcome, add_target, add_workload, make_plan
from benchmarks.runs.round import run_round
from benchmarks.runs.rows import Rows
from benchmarks.runs.serve import INTERRUPTED_EXIT_CODE, start_document, write_out
from benchmarks.runs.slo import Slo
from benchmarks.runs.summary import share_in_slo

SLO_NEVER_HELD_EXIT_CODE = 1
_NEARLY = 0.97
_MOST_ATTEMPTS = 3
_LEAST_EXPECTED = 10
"""Arrivals in a round: at a lower rate it says too little, and by chance may have none."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="ballast bench sweep",
        description="Search for the knee and for the highest rate that holds the SLO.",
        epilog="Exit codes: 0 found; 1 no tried rate held the SLO; 2 an option or the target is wrong; 3 the generator "
        "was the bottleneck; 130 interrupted. Example: ballast bench sweep --slo ttft=500ms,tpot=50ms --duration 30s",
    )
    add_target(options)
    add_workload(options)
    add_load(options, has_rate=False)
    add_outcome(options)
    group = options.add_argument_group("the search")
    group.add_argument("--start-rate", type=float, default=1.0, metavar="R", help="first rate tried, requests/s (1)")
    group.add_argument("--max-rate", type=float, default=1e4, metavar="R", help="never try more (10000)")
    group.add_argument("--precision", type=float, default=0.05, metavar="SHARE", help="gap to stop at (0.05)")
    group.add_argument("--max-rounds", type=int, default=24, metavar="N", help="in all, repeats too (24)")
    options.set_defaults(rounds=3)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Raises BenchError, GeneratorTooSlow."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    if not (0.0 < options.start_rate <= options.max_rate and options.precision > 0.0 and options.max_rounds > 1):
        raise BenchError("a search needs 0 < --start-rate <= --max-rate, --precision above 0 and --max-rounds above 1")
    plan = make_plan(options)
    if plan.slo.bounds == (None, None, None):
        raise BenchError("nothing to hold: name bounds with --slo ttft=500ms,tpot=50ms, or a --config that has them")
    folder = documents.new_folder("sweep", options.out)
    document = {**start_document("sweep", given, plan), "discarded_rounds": []}
    search = Search(plan, folder, document)
    with View("sweep", options.warmup + options.duration) as view:
        search.run(view)
    return finish(search)


class Search:
    """The rounds so far, and what they say. Rates are of requests, each turn of a conversation counted."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        document: documents.Document,
        *,
        title: str = "sweep",
        growth: float = 2.0,
        least_per_s: float | None = None,
    ) -> None:
        """``growth``: from one rate to the next until the edge is passed. ``least_per_s``: the search ends where a rate
        at or below it has missed the SLO beyond doubt; None: it goes on."""
        self.plan, self.folder, self.document = plan, folder, document
        self.title, self.growth, self.least_per_s = title, growth, least_per_s
        self.points: list[Point] = []
        self.is_interrupted = False
        self.complaint: str | None = None

    def run(self, view: View) -> None:
        """Search, then repeat the rates around the edge."""
        options, objective = self.plan.options, self.plan.slo.objective
        while len(self.points) < options.max_rounds and not self._is_over:
            rate_per_s = next_rate(self.points, objective, options.start_rate, options.precision, self.growth)
            if rate_per_s is None or rate_per_s > options.max_rate:
                break
            is_less = bool(self.points) and rate_per_s < min(point.rate_per_s for point in self.points)
            if is_less and self._arrivals_per_s(rate_per_s) * options.duration < _LEAST_EXPECTED:
                break
            self._try(rate_per_s, view)
        around = [rate for rate in (edge(self.points, objective) if self.points else ()) if rate is not None]
        for rate_per_s in around:
            for _ in range(options.rounds - 1):
                if self._is_over or len(self.points) >= options.max_rounds:
                    return
                self._try(rate_per_s, view)

    @property
    def _is_over(self) -> bool:
        return self.is_interrupted or self.complaint is not None or self.is_hopeless

    @property
    def is_hopeless(self) -> bool:
        """Whether a rate that had to hold the SLO has missed it with all of its interval."""
        return is_hopeless(self.points, self.least_per_s, self.plan.slo.objective)

    def _arrivals_per_s(self, rate_per_s: float) -> float:
        """Conversations that begin per second, for so many requests per second."""
        return rate_per_s / self.plan.workload.turns

    def _try(self, rate_per_s: float, view: View) -> None:
        """One round at a rate. One in which the generator was late is put aside and repeated, a few times: in a search
        of many rounds, something else on the machine will once be in the way. Ctrl-C ends it, late or not."""
        for _ in range(_MOST_ATTEMPTS):
            number = len(self.document["rounds"]) + len(self.document["discarded_rounds"])
            view.retitle(f"{self.title}, round {number + 1}: {rate_per_s:.3g} requests/s")
            watch = quiet if self.plan.options.json else view
            found = run_round(self.plan, self.folder, number, self._arrivals_per_s(rate_per_s), watch)
            found.document["rate_per_s"] = rate_per_s
            self.is_interrupted, self.complaint = found.is_interrupted, found.complaint
            if self.is_interrupted or self.complaint is None:
                break
            self.document["discarded_rounds"].append(found.document)
        else:
            return
        self.document["rounds"].append(found.document)
        if not self.is_interrupted:
            self.points.append(point_of(found.document, found.rows, self.plan.slo))
            self.document["sweep"] = self.estimates()
        documents.write(self.folder, self.document)

    def estimates(self) -> dict[str, Any]:
        """The sweep's result as a JSON object; null where an end of an interval was not reached."""
        rng = np.random.default_rng(self.plan.options.seed)
        highest = highest_rate(self.points, self.plan.slo.objective, rng)
        return {
            "highest_rate_in_slo_per_s": _json(highest),
            "knee_per_s": _json(knee(self.points, rng)),
            "objective": self.plan.slo.objective,
            "num_rounds": len(self.points),
        }


def is_hopeless(points: Sequence[Point], least_per_s: float | None, objective: float) -> bool:
    """Whether a rate of at most ``least_per_s`` has missed the SLO with all of its interval."""
    return any(
        least_per_s is not None and point.rate_per_s <= least_per_s and interval(point.drawn_shares)[1] < objective
        for point in points
    )


def point_of(document: Mapping[str, Any], rows: Rows, slo: Slo) -> Point:
    """What a round says of its rate. Raises BenchError when nothing was measured."""
    rate_per_s = float(document["rate_per_s"])
    weights = draw_weights(np.random.default_rng(document["seed"]), [NUM_BLOCKS])
    share, drawn = share_in_slo(rows, slo, weights)
    if math.isnan(share):
        raise BenchError(f"at {rate_per_s:g} requests/s nothing was measured; a longer --duration has more requests")
    drawn[np.isnan(drawn)] = share
    # The rate that was offered differs from the one asked for by chance alone; throughput is relative to it.
    offered = document["throughput"]["offered_requests_per_s"]
    return Point(rate_per_s, share, drawn, answered_per_s(rows) * (rate_per_s / offered if offered else 1.0))


def answered_per_s(rows: Rows) -> float:
    """Answers per second between the first of them and the last arrival. Over the whole round it would be less than the
    rate below the knee too: what arrived last ends after it."""
    ends_s = rows.end_s[rows.is_ok]
    arrived_s = float(rows.intended_s.max())
    begin_s = float(ends_s.min()) if len(ends_s) else arrived_s
    if begin_s >= arrived_s:  # answers take longer than the round
        return len(ends_s) / max(rows.span_s[1] - rows.span_s[0], 1e-9)
    return int(((ends_s > begin_s) & (ends_s <= arrived_s)).sum()) / (arrived_s - begin_s)


def _json(found: Estimate) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return round(value, 4) if math.isfinite(value) else None

    return {"value": finite(found.value), "ci95": [finite(found.low), finite(found.high)]}


def finish(search: Search) -> int:
    """Write, print, judge."""
    document, options = search.document, search.plan.options
    document["status"] = (
        "interrupted" if search.is_interrupted else "generator was the bottleneck" if search.complaint else "complete"
    )
    path = write_out(document, search.folder, options.report)
    if options.json:
        print(json.dumps(document))
    else:
        _print(document, path)
    if search.is_interrupted:
        return INTERRUPTED_EXIT_CODE
    if search.complaint:
        raise GeneratorTooSlow(search.complaint)
    return SLO_NEVER_HELD_EXIT_CODE if document["sweep"]["highest_rate_in_slo_per_s"]["value"] == 0.0 else 0


def _print(document: documents.Document, path: Path) -> None:
    console = words.terminal()
    if "sweep" in document:
        console.print(Text(sentence(document), style="bold"))
        table = Table("requests/s", "in SLO", "answered/s", "TTFT p99 ms", "ITL p99 ms", "", box=None, pad_edge=False)
        for each in sorted(document["rounds"], key=lambda each: each["rate_per_s"]):
            if not each["goodput"] or each["goodput"]["share_in_slo"] is None:
                continue
            latency = each["latency"]
            table.add_row(
                f"{each['rate_per_s']:.4g}", f"{each['goodput']['share_in_slo']:.2%}",
                f"{each['throughput']['requests_per_s']:.4g}", str(latency["ttft_ms"]["p99"]["value"]),
                str(latency["itl_ms"]["p99"]["value"]), "held" if each["goodput"]["is_slo_held"] else "missed",
            )  # fmt: skip
        console.print(table)
    if document["status"] == "interrupted":
        console.print("Interrupted: what was measured is kept")
    console.print(f"Written to {path}", style="dim")


def sentence(document: documents.Document) -> str:
    """The result in one line."""
    found = document["sweep"]
    highest, bend = found["highest_rate_in_slo_per_s"], found["knee_per_s"]
    if highest["value"] is None:
        said = "every rate that was tried holds the SLO; --max-rate allows more"
    elif highest["value"] == 0.0:
        said = "no rate that was tried holds the SLO"
    else:
        low, high = (f"{bound:.4g}" if bound is not None else "beyond what was tried" for bound in highest["ci95"])
        said = f"{highest['value']:.4g} requests/s hold the SLO (95 % CI {low} to {high})"
    if bend["value"] >= _NEARLY * max(each["rate_per_s"] for each in document["rounds"]):
        return f"{said}; the knee is beyond what was tried"
    return f"{said}; the knee is at {bend['value']:.4g} ({bend['ci95'][0]:.4g} to {bend['ci95'][1]:.4g})"
