"""Which settings of a pool are worth trying on this machine, and in which order."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import JsonValue

from benchmarks.load.mistake import BenchError
from benchmarks.tune.settings import DEVICES, REPLICAS, Pool, Settings, value_of
from serving.config.engine import CpuEngine, CudaEngine, EngineConfig
from serving.plan import PoolPlan

MOST_POINTS = 64
"""Of a grid: at a minute each that is an hour."""
_SEQS = (8, 16, 32, 64, 128, 256, 512, 1024)
_BATCHED_TOKENS: dict[str, tuple[JsonValue, ...]] = {
    "cpu": (256, 512, 1024, None, 4096, 8192),
    "cuda": (1024, 2048, 4096, None, 16_384, 32_768),
}
"""Null, vLLM's default, in its place: 2,048 on a CPU, 8,192 for a server on a large GPU (vLLM 0.29)."""
_ENGINES: dict[str, type[EngineConfig]] = {"cpu": CpuEngine, "cuda": CudaEngine}


@dataclass(frozen=True, slots=True)
class Knob:
    """A key and the values to try, neighbours beside each other, the config's own among them."""

    key: str
    values: tuple[JsonValue, ...]
    own: JsonValue

    def moved(self, settings: Settings, step: int) -> Settings | None:
        """``settings`` with the neighbouring value; None beyond the ends."""
        place = self.values.index(settings.get(self.key, self.own)) + step
        return self.set_to(settings, self.values[place]) if 0 <= place < len(self.values) else None

    def set_to(self, settings: Settings, value: JsonValue) -> Settings:
        """The config's own value is no setting."""
        rest = {key: each for key, each in settings.items() if key != self.key}
        return rest if value == self.own else {**rest, self.key: value}


def default_knobs(
    pool: Pool, num_cpus: float, own_dtype: str | None, planned: PoolPlan, most_tokens: int
) -> list[Knob]:
    """What is tried unless somebody says otherwise, what usually pays most first.

    ``own_dtype``: that of the model's weights, None: unknown. ``most_tokens``: of one request, prompt and
    answer. Settings that make answers worse (fewer bits, quantization) are never among them.
    """
    engine = pool["engine"]
    is_cpu = pool["device"] == "cpu"
    found = [_knob(pool, "engine.enforce_eager", (True, False))]
    if is_cpu:
        # Ray holds no replica to a part of a core, so a part of one would be a price without a cost.
        found += [
            _knob(pool, "cpus_per_replica", tuple(range(1, int(num_cpus) + 1))),
            _knob(pool, REPLICAS, tuple(range(1, int(num_cpus) + 1))),
        ]
        if own_dtype in ("bfloat16", "float16"):
            short = "auto" if engine["dtype"] == "float32" else engine["dtype"]
            found.append(_knob(pool, "engine.dtype", (short, "float32")))
    found += [
        _knob(pool, "engine.max_num_seqs", _SEQS),
        _knob(pool, "engine.max_num_batched_tokens", _BATCHED_TOKENS[pool["device"]]),
    ]
    if is_cpu and (planned.kv_cache_tokens or 0) < 2 * engine["max_num_seqs"] * most_tokens:
        own_gib = engine["kv_cache_gib"]
        found.append(_knob(pool, "engine.kv_cache_gib", (own_gib, 2 * own_gib, 4 * own_gib)))
    if not is_cpu:
        found.append(_knob(pool, "engine.gpu_memory_utilization", (0.8, 0.85, None, 0.95)))
    return [knob for knob in found if len(knob.values) > 1]


def _knob(pool: Pool, key: str, values: Sequence[JsonValue]) -> Knob:
    """With the config's own value among them, a number in its order."""
    own = value_of(pool, key)
    if own in values:
        return Knob(key, tuple(values), own)
    size = _number(own)
    larger = [place for place, value in enumerate(values) if (_number(value) or 0.0) > (size or math.inf)]
    place = larger[0] if larger else len(values)
    return Knob(key, (*values[:place], own, *values[place:]), own)


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def parse_try(pool: Pool, text: str) -> Knob:
    """``engine.max_num_seqs=64,128``: these values, as YAML reads them, and the config's own. Raises BenchError."""
    key, equals, listed = text.partition("=")
    if not equals or not listed:
        raise BenchError(f"--try {text}: write KEY=VALUE,VALUE such as engine.max_num_seqs=64,128,256")
    _check_key(pool, key)
    try:
        values: Any = yaml.safe_load(f"[{listed}]")
    except yaml.YAMLError as error:
        raise BenchError(f"--try {text}: the values are no YAML: {' '.join(str(error).split())}") from error
    return _knob(pool, key, [value for place, value in enumerate(values) if value not in values[:place]])


def _check_key(pool: Pool, key: str) -> None:
    device = pool["device"]
    section, _, rest = key.partition(".")
    engine_keys = [name for name in _ENGINES[device].model_fields if name != "extra"]
    is_engine = section == "engine" and (rest in engine_keys or rest.removeprefix("extra.") != rest)
    if not is_engine and key not in (REPLICAS, DEVICES[device]):
        known = ", ".join([REPLICAS, DEVICES[device], *(f"engine.{name}" for name in engine_keys), "engine.extra.NAME"])
        raise BenchError(f"--try {key}: no setting of a {device} pool that can be tried; there are {known}")


def with_tried(knobs: Sequence[Knob], tried: Sequence[Knob], kept: Sequence[str]) -> list[Knob]:
    """The knobs to search: first those that were named; none of ``kept``. Raises BenchError for an unknown name."""
    by_key = {knob.key: knob for knob in tried}
    by_key |= {knob.key: knob for knob in knobs if knob.key not in by_key}
    for key in kept:
        if key not in by_key:
            raise BenchError(f"--keep {key}: it would not be tried anyway; those that would are {', '.join(by_key)}")
    return [knob for key, knob in by_key.items() if key not in kept]


def grid(knobs: Sequence[Knob]) -> list[Settings]:
    """Every combination, the config as it is first. Raises BenchError when there are too many."""
    points = list(_combinations(knobs))
    if len(points) > MOST_POINTS:
        raise BenchError(
            f"a grid of {len(points)} points is over {MOST_POINTS}; name fewer keys or values with --try, or search "
            "without --grid"
        )
    return sorted(points, key=len)


def _combinations(knobs: Sequence[Knob]) -> Iterator[Settings]:
    for values in itertools.product(*(knob.values for knob in knobs)):
        settings: Settings = {}
        for knob, value in zip(knobs, values, strict=True):
            settings = knob.set_to(settings, value)
        yield settings


def described(knob: Knob) -> str:
    """``engine.max_num_seqs: 32, 64 (now), 128``."""
    shown = (json.dumps(value) + (" (now)" if value == knob.own else "") for value in knob.values)
    return f"{knob.key}: {', '.join(shown)}"
