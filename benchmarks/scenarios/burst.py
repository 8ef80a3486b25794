"""Two pools, a day in ten minutes: ``python -m benchmarks.scenarios.burst [--json FILE] [--plot FILE]``.

Two pools of real engines on CPU stand in for two kinds of hardware: `big` is dear and fast (many sequences at once),
`small` is cheap, runs two sequences at once and only stands in for the other. The traffic has a low start, a burst, an
idle hour (six minutes, with the autoscaler's patience shortened accordingly), a second burst, forty seconds of low
load in which every replica of `big` is killed again and again, a third burst, and a low end.

What is shown: what the autoscaler does, that no request is lost, and what a million tokens cost beside a fleet of
fixed size that would carry the burst.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import environment, processes
from benchmarks.load.traffic import Driver, Due, Effect, Run, percentile, poisson
from benchmarks.server import RunningServer, running

MODEL = "ballast-demo"
OUTPUT_TOKENS = 200
TTFT_SLO_S, TPOT_SLO_S = 2.0, 0.1
USD_PER_HOUR = {"big": 2.0, "small": 0.2}
MAX_REPLICAS = {"big": 2, "small": 1}
STATIC_FLEET = {"big": 1, "small": 0}
"""What an operator without an autoscaler would keep: the least that carries the burst."""
SAMPLE_S = 1.0
KILL_EVERY_S = 2.0

LOW_PER_S, BURST_PER_S = 0.5, 6.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the traffic."""

    name: str
    duration_s: float
    rate_per_s: float


PHASES = (
    Phase("low", 30.0, LOW_PER_S),
    Phase("burst", 80.0, BURST_PER_S),
    Phase("idle", 360.0, 0.02),
    Phase("second burst", 50.0, BURST_PER_S),
    Phase("outage of big", 40.0, LOW_PER_S),
    Phase("third burst", 40.0, BURST_PER_S),
    Phase("low end", 30.0, LOW_PER_S),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one time."""

    at_s: float
    ready: dict[str, int]
    starting: dict[str, int]
    target: dict[str, int]


def config() -> dict[str, Any]:
    engine = {"kv_cache_gib": 0.25, "enforce_eager": True}
    root = Path(__file__).resolve().parent.parent.parent
    common = {"device": "cpu", "cpus_per_replica": 0.5}
    pools = [
        {
            **common,
            "name": "big",
            "usd_per_hour": USD_PER_HOUR["big"],
            "replicas": {"min": 0, "max": MAX_REPLICAS["big"]},
            "engine": {**engine, "max_num_seqs": 64},
        },
        {
            **common,
            "name": "small",
            "usd_per_hour": USD_PER_HOUR["small"],
            "replicas": {"min": 1, "max": MAX_REPLICAS["small"]},
            "fallback": {"max_prompt_tokens": 512, "max_output_tokens": 256},
            "engine": {**engine, "max_num_seqs": 2},
        },
    ]
    return {
        "autoscaler": {"min_hold_s": 20, "relearn_s": 20, "patience_s": 5, "back_off_s": 10},
        "limits": {"queue_timeout_s": 120},
        "models": [
            {
                "name": MODEL,
                "source": str(root / "models" / "demo"),
                "slo": {"ttft_s": TTFT_SLO_S, "tpot_s": TPOT_SLO_S},
                "pools": pools,
            }
        ],
    }


def main() -> int:
    """Returns 1 when a request was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenarios.burst", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the timeline into this PNG (needs matplotlib)")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="keep the record of decisions")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    head = environment.describe()
    with running(config()) as server:
        run, samples = asyncio.run(_drive(server, arguments.seed))
        decisions = [json.loads(line) for line in (server.state_dir / "decisions" / "decisions.jsonl").open()]
        if arguments.decisions:
            shutil.copy(server.state_dir / "decisions" / "decisions.jsonl", arguments.decisions)
    summary = summarise(run, samples)
    _print(summary)
    if arguments.json:
        document = {
            **head,
            "phases": [asdict(phase) for phase in PHASES],
            "summary": summary,
            "timeline": [asdict(sample) for sample in samples],
            "bindings": _bindings([entry["decision"] for entry in decisions if "decision" in entry]),
            "failures": [f"{sent.due.at_s:.1f} s: {sent.error}" for sent in run.failed][:50],
        }
        environment.write(arguments.json, document)
    if arguments.plot:
        _plot(arguments.plot, run, samples)
    return 1 if run.failed else 0


async def _drive(server: RunningServer, seed: int) -> tuple[Run, list[Sample]]:
    schedule = poisson([(phase.duration_s, phase.rate_per_s) for phase in PHASES], OUTPUT_TOKENS, seed)
    driver = Driver(server.port, MODEL)
    await driver.send(Due(0.0, "warm up", 8))  # the first answer of an engine is its slowest
    driver = Driver(server.port, MODEL)
    async with sampled(server, driver.run) as samples:
        events = asyncio.create_task(_play(server, driver.run))
        run = await driver.drive(schedule)
        await events
    return run, samples


@contextlib.asynccontextmanager
async def sampled(server: RunningServer, run: Run) -> AsyncIterator[list[Sample]]:
    """What the fleet was, about once a second, while the body runs."""
    samples: list[Sample] = []
    sampler = asyncio.create_task(_sample(server, run, samples))
    try:
        yield samples
    finally:
        sampler.cancel()


def usd_of(samples: Sequence[Sample], until_s: float) -> tuple[float, dict[str, float]]:
    """What the fleet has cost until then, and the replica hours of each pool, starting ones included."""
    hours = dict.fromkeys(USD_PER_HOUR, 0.0)
    for now, later in pairwise(samples):
        share = max(0.0, min(later.at_s, until_s) - now.at_s) / 3600.0
        for pool in hours:
            hours[pool] += share * (now.ready[pool] + now.starting.get(pool, 0))
    usd = sum(USD_PER_HOUR[pool] * number for pool, number in hours.items())
    return round(usd, 5), {pool: round(number, 4) for pool, number in hours.items()}


async def _play(server: RunningServer, run: Run) -> None:
    """Mark the phases, and make the outage."""
    end_s = 0.0
    for phase in PHASES:
        await asyncio.sleep(max(0.0, end_s - run.now_s))
        run.mark(phase.name)
        end_s += phase.duration_s
        while phase.name == "outage of big" and run.now_s < end_s:
            await asyncio.to_thread(_kill_pool, server, "big")
            await asyncio.sleep(KILL_EVERY_S)
    await asyncio.sleep(max(0.0, end_s - run.now_s))


def _kill_pool(server: RunningServer, pool: str) -> None:
    """Kill -9 whatever serves this pool."""
    with contextlib.suppress(OSError):
        for replica in server.status()["replicas"]:
            if replica["pool"] == pool:
                for pid in [*processes.children([replica["pid"]]), replica["pid"]]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


async def _sample(server: RunningServer, run: Run, samples: list[Sample]) -> None:
    while True:
        with contextlib.suppress(OSError, ValueError):
            status = await asyncio.to_thread(server.status)
            pools = status["fleet"]["models"][MODEL]["pools"] if status["fleet"] else {}
            ready = {
                pool: sum(replica["pool"] == pool and replica["ready"] for replica in status["replicas"])
                for pool in USD_PER_HOUR
            }
            samples.append(
                Sample(
                    at_s=round(run.now_s, 2),
                    ready=ready,
                    # The autoscaler's own count is up to two seconds older than what the gateway knows.
                    starting={pool: max(0, entry["target"] - ready[pool]) for pool, entry in pools.items()},
                    target={pool: entry["target"] for pool, entry in pools.items()},
                )
            )
        await asyncio.sleep(SAMPLE_S)


def summarise(run: Run, samples: Sequence[Sample]) -> dict[str, Any]:
    """Costs in US dollars; a million tokens counts output tokens."""
    usd, _ = usd_of(samples, math.inf)
    hours = (samples[-1].at_s - samples[0].at_s) / 3600.0
    static_usd = hours * sum(USD_PER_HOUR[pool] * number for pool, number in STATIC_FLEET.items())
    whole = [sent for sent in run.sent if sent.is_whole]
    tokens = sum(sent.due.output_tokens for sent in whole)
    ttfts = sorted(sent.ttft_s for sent in whole)
    return {
        "num_requests": len(run.sent),
        "num_lost": len(run.failed),
        "slo_ttft": round(sum(ttft_s <= TTFT_SLO_S for ttft_s in ttfts) / len(run.sent), 4),
        "slo_ttft_by_phase": _in_time_by_phase(run),
        "ttft_p50_s": percentile(ttfts, 0.5),
        "ttft_p99_s": percentile(ttfts, 0.99),
        "served": {pool: sum(sent.pool == pool for sent in whole) for pool in USD_PER_HOUR},
        "usd": round(usd, 5),
        "usd_per_million_output_tokens": round(usd / tokens * 1e6, 3),
        "static_fleet": STATIC_FLEET,
        "static_usd": round(static_usd, 5),
        "static_usd_per_million_output_tokens": round(static_usd / tokens * 1e6, 3),
        "to_static": round(usd / static_usd, 3),
        "driver_late_s": round(run.late_s, 3),
        "most_replicas": {pool: max(sample.ready[pool] for sample in samples) for pool in USD_PER_HOUR},
        "first_zero_of_big_s": _first_zero(run, samples),
        "effects": [asdict(effect) for effect in run.effects(60.0, TTFT_SLO_S)],
    }


def _in_time_by_phase(run: Run) -> dict[str, float | None]:
    """Share of each phase's requests whose first token was in time; None of a phase without any."""
    shares: dict[str, float | None] = {}
    begin_s = 0.0
    for phase in PHASES:
        end_s = begin_s + phase.duration_s
        sent = [each for each in run.sent if begin_s <= each.due.at_s < end_s]
        in_time = sum(each.is_whole and each.ttft_s <= TTFT_SLO_S for each in sent)
        shares[phase.name] = round(in_time / len(sent), 4) if sent else None
        begin_s = end_s
    return shares


def _first_zero(run: Run, samples: Sequence[Sample]) -> float | None:
    """Seconds after the idle phase began until `big` was gone; None if it outlived that phase."""
    begin_s, end_s = next((mark.at_s, after.at_s) for mark, after in pairwise(run.marks) if mark.name == "idle")
    idle = (sample for sample in samples if begin_s < sample.at_s < end_s)
    return next((round(sample.at_s - begin_s, 1) for sample in idle if not sample.ready["big"]), None)


def _bindings(decisions: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many decisions each constraint has bound."""
    found: dict[str, int] = {}
    for decision in decisions:
        binding = decision["plan"]["binding"]
        found[binding] = found.get(binding, 0) + 1
    return found


def _print(summary: dict[str, Any]) -> None:
    for name, value in summary.items():
        if name != "effects":
            print(f"{name:40} {value}")
    for entry in summary["effects"]:
        effect = Effect(**entry)
        print(
            f"  {effect.at_s:6.1f} s {effect.name:18} ok {effect.num_succeeded:4} failed {effect.num_failed:3} "
            f"TTFT p50 {effect.ttft_p50_before_s:.3f} -> {effect.ttft_p50_after_s:.3f} s, "
            f"max {effect.ttft_max_after_s:.2f} s, well again after {effect.recovery_s:.1f} s"
        )


def _plot(path: Path, run: Run, samples: Sequence[Sample]) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed; `make setup` installs it", file=sys.stderr)
        return
    figure, (load, fleet, latency) = pyplot.subplots(3, 1, sharex=True, figsize=(11, 7.5), layout="constrained")
    seconds = range(int(max(sample.at_s for sample in samples)) + 1)
    arrivals = [sum(second <= sent.due.at_s < second + 1 for sent in run.sent) for second in seconds]
    load.step(list(seconds), arrivals, where="post", color="#888888", linewidth=1)
    load.set_ylabel("requests/s due")
    times_s = [sample.at_s for sample in samples]
    for pool, colour in (("big", "#1f5fa8"), ("small", "#d07a1b")):
        ready = [sample.ready[pool] for sample in samples]
        there = [sample.ready[pool] + sample.starting.get(pool, 0) for sample in samples]
        fleet.step(times_s, there, where="post", color=colour, linestyle=":", label=f"{pool}, starting included")
        fleet.step(times_s, ready, where="post", color=colour, linewidth=2, label=f"{pool}, ready")
        served = [sent for sent in run.sent if sent.is_whole and sent.pool == pool]
        latency.plot(
            [sent.due.at_s for sent in served], [sent.ttft_s for sent in served], ".", color=colour, label=pool, ms=4
        )
    fleet.set_ylabel("replicas")
    fleet.set_yticks(range(max(MAX_REPLICAS.values()) + 1))
    fleet.legend(loc="upper right", fontsize=8, ncols=2)
    latency.axhline(TTFT_SLO_S, color="#a02020", linewidth=1, label="SLO")
    latency.set_yscale("log")
    latency.set_ylabel("TTFT (s)")
    latency.set_xlabel("seconds")
    latency.legend(loc="upper right", fontsize=8, ncols=3)
    for axis in (load, fleet, latency):
        for mark in run.marks:
            axis.axvline(mark.at_s, color="#cccccc", linewidth=1, zorder=0)
    for index, mark in enumerate(run.marks):
        load.annotate(
            mark.name, (mark.at_s, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 3 + 10 * (index % 2)),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
