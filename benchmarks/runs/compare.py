"""``ballast bench compare A B``: is B worse than A? Exit code 1 if so.

For each metric the ratio B / A has a bootstrap interval: rounds are drawn anew, then blocks of time within each
(`benchmarks/runs/intervals.py`). A metric is worse when its whole interval is beyond the tolerance. The intervals are
widened for the number of metrics (Bonferroni), so that the more is looked at, the fewer false alarms each may raise.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from benchmarks.load.histogram import bucket_counts, quantiles_us
from benchmarks.load.mistake import BenchError
from benchmarks.runs.document import Found, read
from benchmarks.runs.intervals import (
    LEAST_BEYOND,
    NUM_BLOCKS,
    blocks_of,
    draw_weights,
    interval,
    resampled_quantiles_us,
)
from benchmarks.runs.rows import Rows, read_rows
from benchmarks.runs.summary import Sample, sample
from benchmarks.runs.words import terminal

Judgement = Literal["worse", "better", "same", "unclear"]

QUANTILES = (
    ("ttft", 0.5), ("ttft", 0.99), ("itl", 0.5), ("itl", 0.99), ("tpot", 0.5), ("e2e", 0.5), ("e2e", 0.99),
)  # fmt: skip
REGRESSION_EXIT_CODE = 1
NUM_RESAMPLES = 4000
_OVERALL_ERROR = 0.05
_ONE_ROUND = "one round: what differs from run to run is not in the intervals; measure with --rounds 5"
_SAME_LOAD = (
    "rate_per_s", "concurrency", "requests", "phases", "trace", "arrivals", "burstiness", "max_concurrency",
    "prompt_tokens", "output_tokens", "lengths_from", "prefix_tokens", "num_prefixes", "turns", "think_s",
    "tools_share", "json_share", "cancel_share", "slow_share", "endpoint", "extra",
    "has_min_tokens", "faults",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may become worse without being called so: a ratio of latencies or rates, a difference of failed shares."""

    ratio: float = 0.05
    failed_share: float = 0.005


@dataclass(frozen=True, slots=True)
class Side:
    """One run: its rounds' rows. In an open loop the schedule sets the rate, so that it says nothing of the server."""

    rounds: Sequence[Rows]
    is_closed: bool

    def weights(self, rng: np.random.Generator) -> NDArray[np.float64]:
        return draw_weights(rng, [NUM_BLOCKS] * len(self.rounds), NUM_RESAMPLES)

    def latency(self, name: str) -> Sample:
        """All rounds' values; each round's blocks follow those of the one before."""
        samples = [sample(rows, name) for rows in self.rounds]
        blocks = [found.block + place * NUM_BLOCKS for place, found in enumerate(samples)]
        values = np.concatenate([found.values_us for found in samples])
        return Sample(values, np.concatenate(blocks), NUM_BLOCKS * len(samples))

    def per_block(self, what: str) -> NDArray[np.float64]:
        """Sums by block: ``tokens`` of whole answers, ``failed`` or ``counted`` requests."""
        found = []
        for rows in self.rounds:
            ok = rows.is_ok
            values = {"tokens": rows.output_tokens * ok, "failed": rows.counts & ~ok, "counted": rows.counts}[what]
            found.append(np.bincount(blocks_of(rows.intended_s), weights=values.astype(float), minlength=NUM_BLOCKS))
        return np.concatenate(found)

    @property
    def span_s(self) -> float:
        """Not 0, even where all were intended at one moment and failed."""
        return max(sum(rows.span_s[1] - rows.span_s[0] for rows in self.rounds), 1e-9)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the comparison. ``effect`` is B / A, or B - A for the failed share; ``low`` and ``high`` bound it."""

    name: str
    a: float
    b: float
    effect: float
    low: float
    high: float
    judgement: Judgement


def compare(a: Side, b: Side, tolerance: Tolerance, seed: int = 0) -> list[Metric]:
    """Every metric that both sides have enough values for, the share that failed last. Raises BenchError when there is
    none but that share, and it is no other one: few requests say nothing."""
    rng = np.random.default_rng(seed)
    weights_a, weights_b = a.weights(rng), b.weights(rng)
    rows: list[tuple[str, tuple[float, NDArray[np.float64]], tuple[float, NDArray[np.float64]]]] = []
    for latency, share in QUANTILES:
        ours, theirs = a.latency(latency), b.latency(latency)
        least = min(len(ours.values_us), len(theirs.values_us))
        if least * (1.0 - share) >= LEAST_BEYOND:
            name = f"{latency}_p{share * 100:g}_ms"
            rows.append((name, quantile(ours, share, weights_a), quantile(theirs, share, weights_b)))
    if a.is_closed:
        rows.append(("output_tokens_per_s", _rate(a, weights_a), _rate(b, weights_b)))
    level = 1.0 - _OVERALL_ERROR / (len(rows) + 1)
    failed = _difference(_failed(a, weights_a), _failed(b, weights_b), level, tolerance.failed_share)
    found = [_ratio(name, ours, theirs, level, tolerance.ratio) for name, ours, theirs in rows]
    found = [metric for metric in found if not np.isnan(metric.low)]
    if not found and failed.judgement not in ("worse", "better"):
        raise BenchError("too few requests were answered, or in too few moments, to tell anything; measure for longer")
    return [*found, failed]


def quantile(found: Sample, share: float, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Milliseconds, and those of each resample."""
    counts, buckets = bucket_counts(found.values_us, found.block, found.num_blocks)
    value = quantiles_us(counts.sum(axis=0, keepdims=True), buckets, (share,))[0, 0]
    return float(value) / 1e3, resampled_quantiles_us(counts, buckets, (share,), weights)[:, 0] / 1e3


def _rate(side: Side, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Output tokens per second; NaN of a resample that drew no request."""
    tokens, span_s = side.per_block("tokens"), side.span_s
    drawn = weights @ side.per_block("counted")
    return float(tokens.sum()) / span_s, np.where(drawn > 0.0, (weights @ tokens) / span_s, np.nan)


def _failed(side: Side, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    failed, counted = side.per_block("failed"), side.per_block("counted")
    drawn = weights @ counted
    shares = np.where(drawn > 0.0, (weights @ failed) / np.maximum(drawn, 1.0), np.nan)
    return float(failed.sum() / max(1.0, counted.sum())), shares


def _ratio(
    name: str,
    a: tuple[float, NDArray[np.float64]],
    b: tuple[float, NDArray[np.float64]],
    level: float,
    tolerance: float,
) -> Metric:
    low, high = interval(np.divide(b[1], a[1], out=np.full_like(b[1], np.nan), where=a[1] > 0.0), level)
    # Seen so that more is worse, whatever the metric.
    is_rate = name.endswith("_per_s")
    worse_low, worse_high = (1.0 / max(high, 1e-9), 1.0 / max(low, 1e-9)) if is_rate else (low, high)
    bound = 1.0 + tolerance
    return Metric(
        name, a[0], b[0], b[0] / max(a[0], 1e-9), low, high, _judge(worse_low, worse_high, 1.0 / bound, bound)
    )


def _difference(
    a: tuple[float, NDArray[np.float64]], b: tuple[float, NDArray[np.float64]], level: float, tolerance: float
) -> Metric:
    low, high = interval(b[1] - a[1], level)
    return Metric("failed_share", a[0], b[0], b[0] - a[0], low, high, _judge(low, high, -tolerance, tolerance))


def _judge(low: float, high: float, best: float, worst: float) -> Judgement:
    """Of an interval whose higher end is the worse one, and bounds within which nothing has changed."""
    if low > worst:
        return "worse"
    if high < best:
        return "better"
    return "same" if best <= low and high <= worst else "unclear"


def read_side(found: Found) -> Side:
    """Raises BenchError: a run without a round, with rounds at several rates, or one that measured its generator."""
    rounds = found.document["rounds"]
    if complaint := next((each["generator"]["complaint"] for each in rounds if each["generator"]["complaint"]), None):
        raise BenchError(f"{found.folder} says nothing of its server: {complaint}")
    if not rounds:
        raise BenchError(f"{found.folder}: the run has no round; it ended before the first was over")
    if len({each["rate_per_s"] for each in rounds}) > 1:
        raise BenchError(f"{found.folder}: its rounds have several rates; compare runs of `ballast bench serve`")
    warmup_s = found.document["load"]["warmup_s"]
    sides = [read_rows(found.rows_of(number), warmup_s) for number in range(len(rounds))]
    if not all(len(rows) for rows in sides):
        raise BenchError(f"{found.folder}: a round without any measured request")
    return Side(sides, found.document["load"]["concurrency"] is not None)


def check_same_load(a: Found, b: Found) -> None:
    """Raises BenchError when the two were sent different load or had different faults: a ratio would say nothing."""
    for run in (a, b):
        if "rate_per_s" not in run.document.get("load", {}):
            raise BenchError(f"{run.folder}: a run of `bench {run.document['kind']}`; compare runs of `bench serve`")
    ours, theirs = _load_of(a), _load_of(b)
    if different := [name for name in _SAME_LOAD if ours.get(name) != theirs.get(name)]:
        words = "; ".join(f"{name} is {ours.get(name)} in A and {theirs.get(name)} in B" for name in different)
        raise BenchError(f"A and B were sent different load: {words}. Repeat one of them with the other's options")


def _load_of(run: Found) -> dict[str, Any]:
    """What was sent, and what broke meanwhile."""
    marks = [mark for each in run.document["rounds"] for mark in each.get("marks", ()) if "planned_s" in mark]
    return {**run.document["load"], "faults": [f"{mark['name']} at {mark['planned_s']:g} s" for mark in marks]}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="ballast bench compare",
        description="Is run B worse than run A? Both are folders that `ballast bench serve` wrote, best with --rounds.",
        epilog="Exit codes: 0 no regression was shown; 1 B is worse beyond the tolerance; 2 they cannot be compared.",
    )
    options.add_argument("a", type=Path, metavar="A", help="the baseline: a run's folder or its run.json")
    options.add_argument("b", type=Path, metavar="B", help="the candidate")
    options.add_argument("--tolerance", type=float, default=0.05, metavar="SHARE", help="of latencies and rates (0.05)")
    options.add_argument("--failed-tolerance", type=float, default=0.005, metavar="SHARE",
                         help="by how much the share of failed requests may grow (0.005)")  # fmt: skip
    options.add_argument("--json", action="store_true", help="print the comparison as JSON and nothing else")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """1 for a regression. Raises BenchError."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.tolerance < 0.0 or options.failed_tolerance < 0.0:
        raise BenchError("a tolerance is not negative; 0.05 is five percent")
    a, b = read(options.a), read(options.b)
    check_same_load(a, b)
    sides = read_side(a), read_side(b)
    metrics = compare(*sides, Tolerance(options.tolerance, options.failed_tolerance))
    document = describe(metrics, sides)
    document["notes"] += [
        f"{name} is not complete: {run.document['status']}"
        for name, run in (("A", a), ("B", b))
        if run.document["status"] != "complete"
    ]
    if options.json:
        print(json.dumps(document))
    else:
        _print(metrics, document)
    return REGRESSION_EXIT_CODE if document["is_regression"] else 0


def describe(metrics: Sequence[Metric], sides: tuple[Side, Side]) -> dict[str, Any]:
    """The comparison as a JSON object."""
    least_rounds = min(len(side.rounds) for side in sides)
    return {
        "schema_version": 1,
        "is_regression": any(metric.judgement == "worse" for metric in metrics),
        "worse": [metric.name for metric in metrics if metric.judgement == "worse"],
        "better": [metric.name for metric in metrics if metric.judgement == "better"],
        "num_rounds": [len(side.rounds) for side in sides],
        "notes": [] if least_rounds > 1 else [_ONE_ROUND],
        "metrics": [asdict(metric) for metric in metrics],
    }


def _print(metrics: Sequence[Metric], document: dict[str, Any]) -> None:
    console = terminal()
    if document["is_regression"]:
        console.print(Text(f"REGRESSION: B is worse in {', '.join(document['worse'])}", style="bold red"))
    else:
        better = f"; better in {', '.join(document['better'])}" if document["better"] else ""
        console.print(Text(f"NO REGRESSION shown{better}", style="bold green"))
    table = Table("metric", "A", "B", "B / A", "interval", "", box=None, pad_edge=False, padding=(0, 2))
    styles = {"worse": "red", "better": "green", "unclear": "yellow", "same": "dim"}
    for metric in metrics:
        span = f"{metric.low:.3f} to {metric.high:.3f}"
        effect = f"{metric.effect:+.4f}" if metric.name == "failed_share" else f"{metric.effect:.3f}"
        judged = Text(metric.judgement, style=styles[metric.judgement])
        table.add_row(metric.name, f"{metric.a:.4g}", f"{metric.b:.4g}", effect, span, judged)
    console.print(table)
    for note in document["notes"]:
        console.print(Text(note, style="yellow"))
