"""One round: a schedule is sent while the server is watched, and its rows become figures."""

import datetime
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load.drive import Manner
from benchmarks.load.workers import Job, Live, send
from benchmarks.runs.cost import cost_of
from benchmarks.runs.options import Plan
from benchmarks.runs.rows import Rows, read_rows
from benchmarks.runs.summary import summarise
from benchmarks.runs.watcher import Watcher

_SEEDS_APART = 1009
"""Between rounds: a prime, so that rounds of neighbouring seeds do not meet."""

Watch = Callable[[Live], None]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found. ``complaint``: why it measured the generator instead of the server; None: it did not."""

    document: dict[str, Any]
    rows: Rows
    complaint: str | None
    is_interrupted: bool


def run_round(plan: Plan, folder: Path, number: int, rate_per_s: float | None, watch: Watch) -> Round:
    """Round ``number``, at ``rate_per_s`` where it is an open loop at one rate. Its rows lie under ``folder``."""
    options = plan.options
    seed = options.seed + _SEEDS_APART * number
    schedule = plan.schedule(rate_per_s, seed)
    speech = replace(plan.speech, seed=seed)
    is_by_time = options.concurrency is not None and options.requests is None
    manner = Manner(
        concurrency=options.concurrency or options.max_concurrency,
        span_s=options.warmup + options.duration if is_by_time else None,
        think_s=options.think,
        timeout_s=options.timeout,
    )
    began_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    part = folder / f"round-{number}"
    with Watcher(plan.source) as watcher:
        sent = send(Job(plan.target, speech, manner, schedule, part), part, options.workers, watch)
    watcher.started_s = sent.live.started_s
    rows = read_rows(sent.rows, options.warmup)
    complaint = sent.effort.complaint(options.max_delay_ms, schedule.is_open)
    document: dict[str, Any] = {
        "round": number,
        "began_at": began_at,
        "seed": seed,
        "rate_per_s": rate_per_s,
        "concurrency": options.concurrency,
        "num_planned": len(schedule) if not is_by_time else None,
        "is_interrupted": sent.is_interrupted,
        **summarise(rows, plan.slo, seed),
        "generator": {**_finite(asdict(sent.effort)), "complaint": complaint},
        "server": watcher.document(options.warmup),
        "timeline": watcher.timeline(),
        "files": [str(path.relative_to(folder)) for path in sent.rows],
    }
    if (energy_j := document["server"].get("gpu_energy_j")) and rows.output_tokens.any():
        document["server"]["gpu_energy_j_per_output_token"] = round(energy_j / int(rows.output_tokens.sum()), 4)
    if plan.prices is not None and len(rows):
        document["cost"] = cost_of(rows, plan.slo, plan.prices, watcher.usd_per_hour(*rows.span_s))
    return Round(document, rows, complaint, sent.is_interrupted)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
