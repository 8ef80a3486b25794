"""What a changed config would do to the server that runs: which keys differ, whose replicas are replaced, the cost.

Pure. Models and pools are compared by name, so their order in the file does not matter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from serving.config import Config
from serving.config.model import ModelConfig
from serving.config.pool import Pool
from serving.config.problem import FileProblem, config_error, shown
from serving.deployments import config_version, gateway_version, pool_version

LIVE_SERVER_KEYS = frozenset({"keep_alive_s"})
"""Of the ``server`` section; the others are given to Ray and HAProxy, or to every process, when the server starts."""

ABSENT = "(absent)"
Fate = Literal["added", "removed", "replaced", "kept"]
"""Of a pool's replicas."""
UsdPerHour = tuple[float, float]
"""Of the smallest and the largest fleet."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One key that differs, as the file would show its values."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class PoolChange:
    """One pool: what becomes of its replicas, and their bounds; None where there is no such pool."""

    model: str
    pool: str
    fate: Fate
    old_replicas: tuple[int, int] | None
    new_replicas: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Change:
    """All that differs between two configs. ``pools`` has every pool of both."""

    old_version: str
    new_version: str
    keys: tuple[KeyChange, ...]
    needs_restart: tuple[KeyChange, ...]
    pools: tuple[PoolChange, ...]
    replaces_gateways: bool
    old_usd_per_hour: UsdPerHour
    new_usd_per_hour: UsdPerHour

    @property
    def is_empty(self) -> bool:
        return not self.keys

    def check_is_live(self, origin: str) -> None:
        """Raises ConfigError, which names every key of ``origin`` that only a restart can change."""
        if self.needs_restart:
            problems = [
                FileProblem(key.path, key.new, f"needs a restart: the server runs with {key.old}")
                for key in self.needs_restart
            ]
            raise config_error(origin, problems)


def plan_change(old: Config, new: Config) -> Change:
    """What becomes of a server that runs with ``old`` when it is given ``new``."""
    before, after = _flat(old), _flat(new)
    keys = tuple(
        KeyChange(path, before.get(path, ABSENT), after.get(path, ABSENT))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    )
    return Change(
        old_version=config_version(old),
        new_version=config_version(new),
        keys=keys,
        needs_restart=tuple(key for key in keys if not _is_live(key.path)),
        pools=tuple(_pool_changes(old, new)),
        replaces_gateways=gateway_version(old) != gateway_version(new),
        old_usd_per_hour=usd_per_hour(old),
        new_usd_per_hour=usd_per_hour(new),
    )


def usd_per_hour(config: Config) -> UsdPerHour:
    """What the smallest and the largest fleet cost, the latter within the models' ceilings."""
    smallest = largest = 0.0
    for model in config.models:
        smallest += sum(pool.replicas.min * pool.usd_per_hour for pool in model.pools)
        most = sum(pool.replicas.max * pool.usd_per_hour for pool in model.pools)
        ceiling = model.cost.max_usd_per_hour
        largest += most if ceiling is None else min(most, ceiling)
    return smallest, largest


def with_removed_pools(old: Config, new: Config) -> Config:
    """``new`` and, in the models that stay, the pools of ``old`` that it has no more: they serve on until those that
    take their place are up. ``new`` itself where there are none.
    """
    former = {model.name: model for model in old.models}
    models = tuple(_with_pools_of(former.get(model.name), model) for model in new.models)
    return new if models == new.models else new.model_copy(update={"models": models})


def _with_pools_of(old: ModelConfig | None, new: ModelConfig) -> ModelConfig:
    kept = {pool.name for pool in new.pools}
    removed = tuple(pool for pool in old.pools if pool.name not in kept) if old else ()
    return new.model_copy(update={"pools": new.pools + removed}) if removed else new


def _is_live(path: str) -> bool:
    section, _, key = path.partition(".")
    return section != "server" or key in LIVE_SERVER_KEYS


def _pool_changes(old: Config, new: Config) -> Iterator[PoolChange]:
    before, after = _pools(old), _pools(new)
    for place in dict.fromkeys([*before, *after]):
        was, will = before.get(place), after.get(place)
        if was is None:
            fate: Fate = "added"
        elif will is None:
            fate = "removed"
        else:
            fate = "kept" if pool_version(old, *was) == pool_version(new, *will) else "replaced"
        yield PoolChange(*place, fate, _bounds(was), _bounds(will))


def _pools(config: Config) -> Mapping[tuple[str, str], tuple[ModelConfig, Pool]]:
    return {(model.name, pool.name): (model, pool) for model in config.models for pool in model.pools}


def _bounds(found: tuple[ModelConfig, Pool] | None) -> tuple[int, int] | None:
    return (found[1].replicas.min, found[1].replicas.max) if found else None


def _flat(config: Config) -> dict[str, str]:
    """Every value by its path, with models and pools by name: ``models[demo].pools[cpu].usd_per_hour``."""
    data = config.model_dump(mode="json")
    return {path: text for key, value in data.items() for path, text in _leaves(key, value)}


def _leaves(path: str, value: JsonValue) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        for item in value:
            assert isinstance(item, dict), "all() has looked"
            yield from _leaves(f"{path}[{item['name']}]", item)
    else:
        yield path, _shown(value)


def _shown(value: JsonValue) -> str:
    """A value as the file would have it; of a list, what is in it, or two lists of one length would look the same."""
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else shown(value)
