"""A change of the config for a person at a terminal, and for a script."""

from collections.abc import Iterator
from dataclasses import asdict

from serving.change import ABSENT, Change, Fate, KeyChange, PoolChange

_MARKS = {"added": "+", "removed": "-", "replaced": "~", "kept": " "}
_FATES = {
    "added": "new replicas are started",
    "removed": "its replicas finish what they have and stop",
    "replaced": "its replicas are replaced, one after the other",
    "kept": "its replicas stay",
}


def render_change(change: Change) -> str:
    """What differs, what becomes of each pool, and the cost, which is where the eye ends."""
    if change.is_empty:
        return f"nothing to change: config {change.old_version} is in force"
    pools = [_pool_line(pool) for pool in change.pools]
    gateways = (
        "~ gateways: they are replaced, one after the other" if change.replaces_gateways else "  gateways: they stay"
    )
    (old_low, old_high), (new_low, new_high) = change.old_usd_per_hour, change.new_usd_per_hour
    return "\n".join(
        [
            f"config {change.old_version} -> {change.new_version}",
            *(f"  {line}" for line in _key_lines(change)),
            "",
            *pools,
            gateways,
            "",
            f"cost {old_low:.2f} to {old_high:.2f} USD an hour -> {new_low:.2f} to {new_high:.2f}",
        ]
    )


def change_as_json(change: Change) -> dict[str, object]:
    """Every field as JSON values."""
    return asdict(change)


def _key_lines(change: Change) -> Iterator[str]:
    """One line for each key, but one for all keys of a model or pool that comes or goes."""
    whole = _come_and_gone(change)
    for path, fate in whole.items():
        yield f"{_MARKS[fate]} {path}"
    for key in change.keys:
        if not any(key.path.startswith(f"{path}.") for path in whole):
            yield f"{_mark(key)} {key.path}: {key.old} -> {key.new}"


def _come_and_gone(change: Change) -> dict[str, Fate]:
    """Paths of models, and of pools of other models, that only one of the two configs has."""
    changed = {key.path for key in change.keys}
    found: dict[str, Fate] = {}
    for pool in change.pools:
        model = f"models[{pool.model}]"
        if pool.fate in ("added", "removed"):
            found[model if f"{model}.name" in changed else f"{model}.pools[{pool.pool}]"] = pool.fate
    return found


def _mark(key: KeyChange) -> str:
    return "+" if key.old == ABSENT else "-" if key.new == ABSENT else "~"


def _pool_line(pool: PoolChange) -> str:
    bounds = [f"{low} to {high}" for low, high in filter(None, (pool.old_replicas, pool.new_replicas))]
    replicas = " -> ".join(dict.fromkeys(bounds))
    return f"{_MARKS[pool.fate]} {pool.model}/{pool.pool}: {replicas} replicas; {_FATES[pool.fate]}"
