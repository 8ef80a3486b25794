"""What `ballast tune` has measured of a pool: a JSON file beside the config that it wrote, of the same name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from serving.config import Config


@dataclass(frozen=True, slots=True)
class Tuned:
    """One pool: the settings it was given, and USD per million tokens at the SLO before (None: no tried rate held it)
    and after."""

    model: str
    pool: str
    settings: Mapping[str, JsonValue]
    before_usd: float | None
    after_usd: float
    measured_at: str
    slo: str

    def stale_keys(self, config: Config) -> list[str]:
        """Settings that the config no longer has as they were measured; all where it has no such pool."""
        models = {model.name: model for model in config.models}
        pools = {pool.name: pool for pool in models[self.model].pools} if self.model in models else {}
        if self.pool not in pools:
            return list(self.settings)
        dumped = pools[self.pool].model_dump(mode="json")
        return [key for key, value in self.settings.items() if _value_of(dumped, key) != value]

    def line(self, config: Config) -> str:
        """For `ballast check`."""
        before = "not held before" if self.before_usd is None else f"{self.before_usd:.4g}"
        said = (
            f"tuned {self.model}/{self.pool} on {self.measured_at[:10]}: cost per million tokens at the SLO "
            f"{before} → {self.after_usd:.4g} USD ({self.slo})"
        )
        stale = self.stale_keys(config)
        return f"{said}\n  no longer so: {', '.join(stale)} changed since; run `ballast tune` again" if stale else said


def read_tuned(config_path: Path) -> Tuned | None:
    """The evidence beside a config; None where there is none, or a file of that name that is something else."""
    try:
        found: Any = json.loads(config_path.with_suffix(".json").read_bytes())
        if found["kind"] != "tuned":
            return None
        cost = found["usd_per_million_tokens_at_slo"]
        before = cost["before"]["value"]
        return Tuned(
            found["model"], found["pool"], found["settings"], None if before is None else float(before),
            float(cost["after"]["value"]), found["measured_at"], found["slo"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _value_of(pool: Mapping[str, Any], key: str) -> JsonValue:
    if key == "replicas":
        key = "replicas.min"
    found: Any = pool
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    value: JsonValue = found
    return value
