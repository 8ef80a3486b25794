"""The servers that faults happen to, each as a config: a start is dear, so one serves as many faults as it can."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.stage import Pace, Stage
from benchmarks.server import running

REAL, SCRIPTED, BY_HAND = "real", "scripted", "by hand"
DEMO, STEADY, PAIR, COLD, SLOW, NONE = "ballast-demo", "steady", "pair", "cold", "slow", "none"
"""Models. `pair` has a pool that stands in for the other; `cold` and `slow` keep no replica; `none` can have none."""
SWING, WIDE = "swing", "wide"
"""Models, and their pools: `swing` has one replica or two, as it is told; of `wide`, each of two nodes takes one."""
WATCHDOG_S = 8.0
GRACE_S = 8.0
"""What requests get to finish in when the server stops."""
SILENCE_S = 4.0
"""What a replica may take between two bytes."""
QUEUE_TIMEOUT_S = 30.0
SLOW_START_S = 120.0
"""What `slow` is believed to take to start: longer than any request may wait."""
RETRY_FLOOR = 16
MAX_QUEUED = 64
"""Requests that may wait in each gateway."""
NODE_CPUS = os.cpu_count() or 1
"""Of the second node: as many as the first has, which are the same."""
NUM_SLOTS = 8
"""Requests that a scripted engine runs at once."""
PREFILL_S, STEP_S = 0.05, 0.02

NO_SPARE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_ARENA_MAX": "1"}
"""Large tensors are mapped, each for itself: else glibc has room for them in what was freed, and in what its arenas
have reserved, and a process that may map nothing more (F10) goes on."""

_ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def stage(site: str, pace: Pace) -> Iterator[Stage]:
    """The server of ``site``, with all replicas that it keeps."""
    script = {"prefill_s": PREFILL_S, "step_s": STEP_S, "max_num_seqs": NUM_SLOTS, "max_model_len": 16_384}
    words = ("--engine-args", json.dumps(script))
    if site == REAL:
        with running(_real(), environ=NO_SPARE_MEMORY) as server:
            yield _ready(Stage(server, pace, DEMO, output_tokens=120))
    elif site == SCRIPTED:
        with running(_scripted(), "--engine", "scripted", *words) as server:
            yield _ready(Stage(server, pace, STEADY, output_tokens=50))
    else:
        program = ("benchmarks.faults.by_hand",)
        with running(_by_hand(), "--node-cpus", str(NODE_CPUS), *words, program=program) as server:
            yield _ready(Stage(server, pace, WIDE, output_tokens=50))


def _ready(stage: Stage) -> Stage:
    waited_s = asyncio.run(stage.settled(2))
    assert waited_s < float("inf"), "two replicas and two gateways"
    return stage


def _by_hand() -> dict[str, Any]:
    models = [
        (SWING, [_pool(SWING, 1, 2, cpus_per_replica=0.05)]),
        (WIDE, [_pool(WIDE, 2, 2, cpus_per_replica=0.6 * NODE_CPUS)]),
    ]
    return _config(models, {})


def _real() -> dict[str, Any]:
    engine = {"kv_cache_gib": 0.25, "enforce_eager": True, "max_num_seqs": 16}
    pool = _pool("cpu", 2, 2, engine=engine, cpus_per_replica=0.5, watchdog_s=WATCHDOG_S)
    return _config([(DEMO, [pool])], {})


def _scripted() -> dict[str, Any]:
    spare = {"fallback": {"max_prompt_tokens": 512, "max_output_tokens": 256}}
    models = [
        (STEADY, [_pool("main", 2, 2)]),
        (PAIR, [_pool("big", 1, 1), _pool("small", 1, 1, usd_per_hour=0.1, **spare)]),
        (COLD, [_pool("chilly", 0, 1, cold_start_s=8.0)]),
        (SLOW, [_pool("sluggish", 0, 1, cold_start_s=SLOW_START_S)]),
        (
            NONE,
            [{"name": "gpu", "device": "cuda", "gpus_per_replica": 8, "usd_per_hour": 20.0, "replicas": {"min": 0}}],
        ),
    ]
    silence = {"first_byte_timeout_s": SILENCE_S, "inter_chunk_timeout_s": SILENCE_S}
    return _config(models, {**silence, "max_queued_requests": MAX_QUEUED})


def _pool(name: str, least: int, most: int, **fields: Any) -> dict[str, Any]:
    pool = {
        "name": name,
        "device": "cpu",
        "cpus_per_replica": 0.1,
        "usd_per_hour": 1.0,
        "engine": {"kv_cache_gib": 0.1},
    }
    return {**pool, "replicas": {"min": least, "max": most}, **fields}


def _config(models: list[tuple[str, list[dict[str, Any]]]], limits: dict[str, Any]) -> dict[str, Any]:
    source = str(_ROOT / "models" / "demo")
    return {
        "server": {"gateways": 2, "shutdown_grace_s": GRACE_S},
        "limits": {"queue_timeout_s": QUEUE_TIMEOUT_S, "retry_budget_floor": RETRY_FLOOR, **limits},
        "autoscaler": {"min_hold_s": 5, "relearn_s": 5, "patience_s": 2, "back_off_s": 5},
        "models": [{"name": name, "source": source, "pools": pools} for name, pools in models],
    }
