"""``ballast autoscale``: why the fleet is the size it is, from the record of decisions."""

import json
import math
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from datetime import time as clock_time
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from serving.autoscaler.decisions import (
    FILE_NAME,
    FORMER_FILE_NAME,
    Decision,
    Start,
    entry_of,
    read_back,
    read_file,
    replay,
)
from serving.autoscaler.documents import to_document
from serving.autoscaler.types import Binding
from serving.commands.console import console
from serving.commands.settings import load_settings
from serving.errors import StateError

DIFFERENT_EXIT_CODE = 1

WHY = {
    Binding.SLO: "fewer replicas would cost more in missed requests than they save",
    Binding.REPLICAS_MIN: "the pool keeps at least this many (replicas.min)",
    Binding.REPLICAS_MAX: "the pool may not have more (replicas.max)",
    Binding.MAX_USD_PER_HOUR: "more would cost more than cost.max_usd_per_hour",
    Binding.TARGET_USD_PER_MILLION_TOKENS: "more would cost more than cost.target_usd_per_million_tokens",
    Binding.CAPACITY: "the cluster gives no more replicas of this pool for now",
    Binding.PATIENCE: "nothing else is up, and somebody has waited long enough",
    Binding.HOLD: "fewer would do, but not for long enough yet",
    Binding.RELEARNING: "fewer might do, but too little was seen since the start to say so",
}


def run(arguments: Namespace) -> int:
    """Returns 0; `replay` returns 1 when it decides differently today."""
    if arguments.action == "replay":
        return _replay(Path(arguments.file), as_json=arguments.json)
    _, config = load_settings(arguments)
    at_s = time.time() if arguments.at is None else _time(arguments.at)
    folder = config.server.decisions_dir
    try:
        found, num_other = latest(_documents(folder), at_s, [model.name for model in config.models])
    except OSError as error:
        raise StateError(f"The record of decisions cannot be read: {error}") from error
    others = f"{num_other} entries of another version were passed over." if num_other else ""
    if not found:
        raise StateError(f"No decision up to then is on record in {folder}. Is a server running? {others}".rstrip())
    if arguments.json:
        print(json.dumps([to_document(decision) for decision in found]))
        return 0
    for decision in found:
        console().print(explain(decision, at_s))
    if others:
        console().print(others)
    return 0


def latest(documents: Iterable[Any], at_s: float, models: Sequence[str]) -> tuple[list[Decision], int]:
    """Of each model the last decision made by then, those of ``models`` first; and how many entries of another version
    or shape were passed over. ``documents`` come newest first, and are read until all ``models`` have theirs."""
    found: dict[str, Decision] = {}
    num_other = 0
    for document in documents:
        if found.keys() >= set(models):
            break
        match document:
            case {"start": _}:
                continue
            case {"decision": {"model": str(model), "at_s": float(made_s)}} if model in found or made_s > at_s:
                continue
        try:
            entry = entry_of(document)
        except ValueError:
            num_other += 1
            continue
        if isinstance(entry, Decision) and entry.at_s <= at_s:
            found.setdefault(entry.model, entry)
    names = [*(name for name in models if name in found), *(name for name in found if name not in models)]
    return [found[name] for name in names], num_other


def explain(decision: Decision, at_s: float) -> RenderableType:
    """A decision in words, with its age ``at_s``, and a table of its pools."""
    plan, demand = decision.plan, decision.demand
    when = datetime.fromtimestamp(decision.at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    mode = "" if decision.is_applied else " (recommended only)"
    price = plan.usd_per_million_tokens
    lines = [
        f"{decision.model} at {when}, {_age(at_s - decision.at_s)} old{mode}: {WHY[plan.binding]}.",
        f"Expected {plan.forecast_per_s:.3g} requests/s, of which {plan.expected_miss:.2%} would miss the SLO "
        f"for want of replicas once all of these are ready; "
        f"misses are at {plan.budget_spent:.0%} of the error budget; one is priced at {plan.miss_usd:.3g} USD.",
        f"{demand.num_queued} wait in time, {demand.num_late} late"
        + (f", {demand.num_turned_away} were turned away" if demand.num_turned_away else "")
        + f". The fleet costs {plan.usd_per_hour:.2f} USD/h"
        + (f", {price:.2f} USD per million tokens at this load." if price is not None else "."),
    ]
    table = Table("Pool", box=None, pad_edge=False)
    for heading in ("Ready", "Starting", "Target", "Wanted", "Carries", "Cold start"):
        table.add_column(heading, justify="right")
    table.add_column("Why")
    for reason in plan.reasons:
        state = decision.fleet.get(reason.pool)
        why = WHY[reason.binding] if state is None or state.is_placeable else "the cluster has no such device"
        table.add_row(
            reason.pool,
            str(state.num_ready if state else 0),
            str(len(state.starting_age_s) if state else 0),
            str(reason.target),
            str(reason.wanted),
            f"{reason.capacity_per_s:.3g} req/s",
            f"{reason.cold_start_s:.0f} s",
            why,
        )
    return Group(*lines, table)


def _age(seconds: float) -> str:
    for unit, unit_s in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2.0 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _documents(folder: Path) -> Iterator[Any]:
    """The record's lines, newest first. Raises OSError."""
    for name in (FILE_NAME, FORMER_FILE_NAME):
        path = folder / name
        if path.exists():
            yield from read_back(path)


def _replay(path: Path, *, as_json: bool) -> int:
    """Decide again what a file says was decided, and tell where today's code or its inputs say otherwise."""
    num_same = 0
    different = []
    try:
        entries: Iterable[Start | Decision] = read_file(path)
        for replayed in replay(iter(entries)):
            num_same += replayed.is_same
            if not replayed.is_same:
                different.append(replayed)
    except (OSError, ValueError) as error:
        raise StateError(f"The record of decisions cannot be replayed: {error}") from error
    total = num_same + len(different)
    if as_json:
        words = [
            {
                "at_s": each.recorded.at_s,
                "model": each.recorded.model,
                "recorded": dict(each.recorded.plan.targets),
                "today": dict(each.plan.targets),
            }
            for each in different
        ]
        print(json.dumps({"num_decisions": total, "num_same": num_same, "different": words}))
    else:
        print(f"{total} decisions, {num_same} decided the same today.")
        for each in different[:20]:
            print(f"  {each.recorded.at_s:.0f} {each.recorded.model}: {dict(each.recorded.plan.targets)} was recorded, "
                  f"{dict(each.plan.targets)} is decided today")  # fmt: skip
    return DIFFERENT_EXIT_CODE if different else 0


def _time(text: str) -> float:
    """Unix seconds of ``text``: ISO 8601 (local time where it names no zone), HH:MM[:SS] of today, or Unix seconds.

    Raises StateError.
    """
    try:
        seconds = float(text)
        if math.isfinite(seconds):
            return seconds
    except ValueError:
        pass
    now = datetime.now().astimezone()
    try:
        if len(text) <= len("HH:MM:SS"):
            return datetime.combine(now.date(), clock_time.fromisoformat(text), now.tzinfo).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise StateError(f"--at {text}: not a time; write 14:30, 2031-01-31T14:30:00 or Unix seconds") from error
