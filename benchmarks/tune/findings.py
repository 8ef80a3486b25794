"""What a tuning has found: as JSON, as comments for the config, and as a table."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.runs import document as documents
from benchmarks.runs.slo import Slo
from benchmarks.tune.price import Cost
from benchmarks.tune.search import Candidate, Tuning
from benchmarks.tune.settings import DEVICES, REPLICAS, Pool, replica_usd_per_hour, value_of, words

_LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms")
_SHARES = ("p50", "p90", "p99")


def as_json(tuning: Tuning, folder: Path) -> dict[str, Any]:
    """Every candidate, the winner, and what it costs beside the config as it is."""
    winner = tuning.winner()
    return {
        "candidates": [_candidate(each, tuning, folder) for each in tuning.candidates.values()],
        "winner": dict(winner.settings),
        "ratio": ratio_of(tuning, winner),
        "is_cheaper": is_cheaper(tuning, winner),
        "spent_s": round(tuning.spent_s, 1),
    }


def ratio_of(tuning: Tuning, winner: Candidate) -> dict[str, Any] | None:
    """The winner's cost by that of the config as it is; None where one of them is not known."""
    cost, before = winner.cost(tuning.objective, seed=1), tuning.default.cost(tuning.objective, seed=2)
    if not winner.settings or cost is None or before is None:
        return None
    return _estimate(*cost.over(before))


def is_cheaper(tuning: Tuning, winner: Candidate) -> bool:
    """Whether the winner's cost is below that of the config as it is beyond doubt, both measured in turn."""
    found = ratio_of(tuning, winner)
    high = found["ci95"][1] if found else None
    return winner.stage == tuning.default.stage == "lap" and high is not None and high < 1.0


def _candidate(candidate: Candidate, tuning: Tuning, folder: Path) -> dict[str, Any]:
    found = candidate.cost(tuning.objective)
    points = candidate.points(candidate.stage)
    return {
        "settings": dict(candidate.settings),
        "usd_per_hour": round(candidate.usd_per_hour, 6),
        "stage": candidate.stage,
        "highest_rate_in_slo_per_s": _estimate(found.rate_per_s, *found.rate_ci95) if found else None,
        "usd_per_million_tokens_at_slo": _estimate(found.value, *found.ci95) if found else None,
        "tokens_per_request": round(candidate.tokens_per_request, 2) if points else None,
        "latency_at_slo": _latency(candidate, found, folder) if found else None,
        "dropped": candidate.why,
        "num_rounds": len(points),
        "rounds": [
            {"stage": visit.stage, "number": visit.number, "rate_per_s": round(point.rate_per_s, 4),
             "share_in_slo": round(point.share, 5), "answered_per_s": round(point.answered_per_s, 4)}
            for visit in candidate.visits for point in visit.points
        ],
    }  # fmt: skip


def _estimate(value: float, low: float, high: float) -> dict[str, Any]:
    """An end that was not reached is null."""

    def finite(number: float) -> float | None:
        return float(f"{number:.5g}") if math.isfinite(number) else None

    return {"value": finite(value), "ci95": [finite(low), finite(high)]}


def _latency(candidate: Candidate, found: Cost, folder: Path) -> dict[str, Any] | None:
    """Percentiles of the round whose rate is next to the highest one in SLO, from below where there is one."""
    rounds = [
        each
        for visit in candidate.visits
        if visit.stage == candidate.stage and visit.folder is not None and visit.points
        for each in documents.read(folder / visit.folder).document["rounds"]
    ]
    if not rounds:
        return None
    rounds.sort(key=lambda each: each["rate_per_s"])
    below = [each for each in rounds if each["rate_per_s"] <= found.rate_per_s]
    nearest = below[-1] if below else rounds[0]
    percentiles = {name: {share: nearest["latency"][name][share]["value"] for share in _SHARES} for name in _LATENCIES}
    return {"rate_per_s": round(nearest["rate_per_s"], 4), **percentiles}


def changes(pool: Pool, winner: Candidate, speed: Mapping[str, float] | None) -> dict[tuple[str, ...], Any]:
    """What the config must say for the winner to run: its settings, the price of a replica, and its speed."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in winner.settings.items():
        if key == REPLICAS:
            most = max(int(str(value)), int(pool["replicas"]["max"]))
            found |= {("replicas", "min"): value, ("replicas", "max"): most}
        else:
            found[tuple(key.split("."))] = value
    if DEVICES[pool["device"]] in winner.settings:
        found["usd_per_hour",] = replica_usd_per_hour(pool, winner.settings)
    return found | ({("speed",): dict(speed)} if speed else {})


def tuned(tuning: Tuning, winner: Candidate, slo: Slo, load: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """What `ballast check` reads beside the config: settings, and cost before and after."""
    cost, before = winner.cost(tuning.objective), tuning.default.cost(tuning.objective)
    assert cost is not None and before is not None, "only a measured winner is written"  # noqa: PT018
    return {
        "settings": dict(winner.settings),
        "usd_per_million_tokens_at_slo": {
            "before": _estimate(before.value, *before.ci95),
            "after": _estimate(cost.value, *cost.ci95),
            "ratio": ratio_of(tuning, winner),
        },
        "highest_rate_in_slo_per_s": {
            "before": _estimate(before.rate_per_s, *before.rate_ci95),
            "after": _estimate(cost.rate_per_s, *cost.rate_ci95),
        },
        "slo": str(slo),
        "load": load,
        "measured_at": head["measured_at"],
        "machine": {name: head["machine"][name] for name in ("cpu", "num_cpus", "memory_gib")},
        "versions": head["versions"],
        "commit": head["commit"],
    }


def comments(found: Mapping[str, Any], pool: Pool) -> list[str]:
    """The evidence, for whoever reads the config."""
    cost, rate = found["usd_per_million_tokens_at_slo"], found["highest_rate_in_slo_per_s"]
    machine = found["machine"]
    is_known = cost["before"]["value"] is not None
    before, times = (
        (_said(cost["before"]), f"{_said(cost['ratio'])} times; ") if is_known else ("not held as it was", "")
    )
    return [
        f"Tuned by `ballast tune` on {found['measured_at'][:10]}: {machine['cpu']}, {machine['num_cpus']} cores;",
        f"{found['load']}; SLO: {found['slo']}.",
        f"USD per million tokens at the SLO: {before} -> {_said(cost['after'])},",
        f"{times}requests/s: {_said(rate['before'])} -> {_said(rate['after'])}.",
        *(f"{key}: {value_of(pool, key)} -> {value}" for key, value in found["settings"].items()),
    ]


def _said(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "unknown"
    low, high = (f"{end:.4g}" if end is not None else "?" for end in estimate["ci95"])
    return f"{estimate['value']:.4g} (95 % CI {low} to {high})"


def line(candidate: Candidate, objective: float) -> str:
    """One candidate as it stands."""
    found = candidate.cost(objective)
    parts = [words(candidate.settings)]
    if found is not None:
        parts += [f"{_said(_estimate(found.rate_per_s, *found.rate_ci95))} requests/s in SLO"]
        parts += [f"${_said(_estimate(found.value, *found.ci95))} per million tokens"]
    return ": ".join([parts[0], "; ".join([*parts[1:], *([f"dropped, {candidate.why}"] if candidate.why else [])])])


def table(found: Mapping[str, Any]) -> RenderableType:
    """All candidates, and the verdict."""
    grid = Table("settings", "USD/h", "requests/s in SLO", "USD per million tokens", "TTFT p99", "TPOT p99", "",
                 box=None, pad_edge=False)  # fmt: skip
    for each in found["candidates"]:
        latency = each["latency_at_slo"]
        grid.add_row(
            Text(words(each["settings"])), f"{each['usd_per_hour']:.4g}", _cell(each["highest_rate_in_slo_per_s"]),
            _cell(each["usd_per_million_tokens_at_slo"]),
            *(f"{latency[name]['p99']:.4g} ms" if latency and latency[name]["p99"] else "" for name in _LATENCIES[:2]),
            Text(each["dropped"] or ("winner" if each["settings"] == found["winner"] else ""), style="dim"),
        )  # fmt: skip
    return Group(grid, Text(verdict(found), style="bold"))


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    low, high = (f"{end:.3g}" if end is not None else "?" for end in estimate["ci95"])
    return f"{estimate['value']:.4g} ({low} to {high})"


def verdict(found: Mapping[str, Any]) -> str:
    """In one line."""
    before, after = _cost_of(found, {}), _cost_of(found, found["winner"])
    if after["value"] is None:
        return "No setting that was measured holds the SLO at a rate that was tried."
    if not found["winner"] or found["ratio"] is None:
        return "No setting that was measured is cheaper than the config as it is."
    if before["value"] is None:
        said = f"{words(found['winner'])} holds the SLO, at ${_said(after)} per million tokens"
        return f"{said}; the config as it is held it at no rate that was tried."
    said = f"{words(found['winner'])} costs {_said(found['ratio'])} times as much per token at the SLO"
    return f"{said}." if found["is_cheaper"] else f"{said}: not shown to be cheaper than the config as it is."


def _cost_of(found: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """USD per million tokens of one candidate; its value is null where no tried rate held the SLO."""
    cost: Mapping[str, Any] = next(
        each["usd_per_million_tokens_at_slo"] for each in found["candidates"] if each["settings"] == settings
    )
    return cost
