"""What a study says of our policy: how it stands against the references and against each peer.

Works on the JSON of a study (`study.describe`), so that runs of different policies on one trace can be put together.
"""

import statistics
from collections.abc import Iterable
from typing import Any

Entry = dict[str, Any]


def merge(old: Entry, new: Entry) -> Entry:
    """Two runs on the same trace and fleet as one: what the new one has replaces, the rest stays."""
    policies = {result["policy"] for result in new["results"]}
    return {
        **new,
        "references": new["references"] or old["references"],
        "results": [*new["results"], *(result for result in old["results"] if result["policy"] not in policies)],
        "hindsight": [*new["hindsight"], *(row for row in old["hindsight"] if row["policy"] not in policies)],
    }


def judge(entry: Entry) -> Entry | None:
    """Ratios are cost over cost; None where they would compare unlike with like. None for a run without ours."""
    ours = _find(entry, "ours")
    if ours is None:
        return None
    usd, objective, references = ours["usd"], entry["objective"], entry["references"]
    others = [result for result in entry["results"] if result["policy"] != "ours"]
    ray_default = _find(entry, "ray", is_default=True)
    return {
        "meets_objective": ours["slo"] >= objective,
        "to_dp_one_pool_u085": round(usd / references["dp_one_pool_u085"]["lower_usd"], 3) if references else None,
        "to_dp_all_pools_u085": round(usd / references["dp_all_pools_u085"]["lower_usd"], 3) if references else None,
        "to_ray_in_hindsight": _ratio(ours, _find(entry, "ray"), objective),
        "to_stock_ray_in_hindsight": _ratio(ours, _find(entry, "ray-stock"), objective),
        "to_ray_default": _ratio(ours, ray_default, min(objective, ray_default["slo"])) if ray_default else None,
        "dominated_by": [
            result["policy"] for result in others if not result["is_default"] and _dominates(result, ours)
        ],
        "dominated_by_any_setting": [
            {"policy": row["policy"], "setting": row["setting"], "usd": row["usd"], "slo": row["slo"]}
            for row in entry["hindsight"]
            if row["policy"] != "ours"
            and row["usd"] < usd - ours["usd_ci95"]
            and row["slo"] > ours["slo"] + ours["slo_ci95"]
        ],
    }


def median_ratio(verdicts: Iterable[Entry], name: str) -> tuple[float, int] | None:
    """Median over the traces where the ratio is known, and how many those are."""
    known = [verdict[name] for verdict in verdicts if verdict[name] is not None]
    return (statistics.median(known), len(known)) if known else None


def _find(entry: Entry, policy: str, is_default: bool = False) -> Entry | None:
    matches = [result for result in entry["results"] if result["policy"] == policy]
    return next((result for result in matches if result["is_default"] == is_default), None) or (
        matches[0] if is_default and matches else None
    )


def _ratio(ours: Entry, other: Entry | None, objective: float) -> float | None:
    """None unless both meet the objective."""
    if other is None or min(ours["slo"], other["slo"]) < objective:
        return None
    return round(float(ours["usd"]) / float(other["usd"]), 3)


def _dominates(other: Entry, ours: Entry) -> bool:
    """Better on both by more than both confidence intervals."""
    return bool(
        other["usd"] + other["usd_ci95"] < ours["usd"] - ours["usd_ci95"]
        and other["slo"] - other["slo_ci95"] > ours["slo"] + ours["slo_ci95"]
    )
