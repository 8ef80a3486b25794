"""What a candidate changes of a pool, by key (``{"engine.max_num_seqs": 128}``), and what follows for its price."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

Settings = Mapping[str, JsonValue]
"""Keys of the pool, dotted, with values that differ from the config's. Empty: the config as it is."""

Pool = dict[str, Any]
"""A pool of the config as JSON."""

REPLICAS = "replicas"
"""How many run at once on the node: a number here, bounds in the config."""
DEVICES = {"cpu": "cpus_per_replica", "cuda": "gpus_per_replica"}
"""What a replica's price is for."""


def identity(settings: Settings) -> str:
    """The same for the same settings in any order."""
    return json.dumps(settings, sort_keys=True)


def words(settings: Settings) -> str:
    """For a person: ``max_num_seqs 128, cpus_per_replica 2``."""
    shown = (f"{key.removeprefix('engine.')} {json.dumps(value).strip(chr(34))}" for key, value in settings.items())
    return ", ".join(shown) or "the config as it is"


def value_of(pool: Pool, key: str) -> JsonValue:
    """What the config says; None where it leaves it open."""
    if key == REPLICAS:
        return max(1, int(pool["replicas"]["min"]))
    found: Any = pool
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    value: JsonValue = found
    return value


def changed(pool: Pool, settings: Settings) -> Pool:
    """A copy of ``pool`` with the settings, and the price of a replica that follows from them."""
    made: Pool = json.loads(json.dumps(pool))
    for key, value in settings.items():
        if key == REPLICAS:
            continue
        *sections, last = key.split(".")
        section = made
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return made | {"usd_per_hour": replica_usd_per_hour(pool, settings)}


def num_replicas(pool: Pool, settings: Settings) -> int:
    """How many run at once."""
    return int(str(settings.get(REPLICAS, value_of(pool, REPLICAS))))


def replica_usd_per_hour(pool: Pool, settings: Settings) -> float:
    """The config's ``usd_per_hour`` is the price of a replica with the config's cores (or GPUs); with twice as many it
    costs twice as much."""
    key = DEVICES[pool["device"]]
    share = float(str(settings.get(key, pool[key]))) / float(pool[key])
    return round(float(pool["usd_per_hour"]) * share, 6)


def usd_per_hour(pool: Pool, settings: Settings) -> float:
    """What all replicas cost."""
    return num_replicas(pool, settings) * replica_usd_per_hour(pool, settings)
