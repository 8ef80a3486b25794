"""Is the simulator right? ``python -m benchmarks.scenarios.replay --trace FILE [--json FILE]``

The two pools of `burst.py` are calibrated (`ballast bench calibrate`), and their server is told so. Ten minutes of a
trace go to that server, autoscaler included, and through the simulator with the same fleet, whose speeds and cold
starts are those that the real one has shown in this run. Cost and SLO of the two are compared.

The bundled model is small and this machine slow: lengths are divided by ``--shrink``, and the trace's rate is brought
to ``--rate`` by taking each request as often as that needs.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.calibrate import FIRST_ID, LAST_ID, alone, calibrate
from benchmarks.load.traffic import Driver, Due, Run
from benchmarks.scenarios.burst import MODEL, TPOT_SLO_S, TTFT_SLO_S, USD_PER_HOUR, config, sampled, usd_of
from benchmarks.server import RunningServer, running
from benchmarks.simulator.ours import Ours
from benchmarks.simulator.outcome import Outcome
from benchmarks.simulator.scenario import Scenario
from benchmarks.simulator.simulation import simulate
from benchmarks.simulator.trace import Trace, read_trace
from serving.autoscaler.tuning import Tuning
from serving.router.prediction import StepModel

MAX_PROMPT_TOKENS, MAX_OUTPUT_TOKENS = 1500, 256
COST_TOLERANCE, SLO_TOLERANCE = 0.05, 0.01
NUM_SEEDS = 5


def main() -> int:
    """Returns 1 when the two disagree by more than the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenarios.replay", description=__doc__)
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE")
    parser.add_argument("--from-h", type=float, default=0.0, metavar="HOURS", help="where in the trace to begin")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--shrink", type=float, default=4.0, help="divide all lengths by this")
    parser.add_argument("--rate", type=float, default=2.0, help="mean requests per second")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args()
    head = environment.describe()
    begin_s = options.from_h * 3600.0
    part = read_trace(options.trace).part(begin_s, begin_s + options.minutes * 60.0)
    trace = fitted(part, options.rate, options.minutes * 60.0, options.shrink)
    print(f"{len(trace)} requests in {trace.span_s:.0f} s", file=sys.stderr)
    speeds = _calibrated()
    given = config()
    for pool in given["models"][0]["pools"]:
        pool["speed"] = speeds[pool["name"]]
    with running(given) as server:
        real = asyncio.run(_replay(server, trace))
        decisions = [json.loads(line) for line in (server.state_dir / "decisions" / "decisions.jsonl").open()]
    scenario = scenario_of([entry["decision"] for entry in decisions if "decision" in entry], real["step_models"])
    outcomes = [simulate(scenario, trace, Ours(scenario, _tuning()), seed) for seed in range(1, NUM_SEEDS + 1)]
    simulated = _summary(outcomes)
    cost_error = simulated["usd"] / real["usd"] - 1.0
    slo_error = simulated["slo"] - real["slo"]
    print(f"real       ${real['usd']:.4f}, SLO {real['slo']:.2%}, {real['num_lost']} lost, hours {real['hours']}")
    print(f"simulated  ${simulated['usd']:.4f}, SLO {simulated['slo']:.2%}, hours {simulated['hours']}")
    print(f"difference {cost_error:+.1%} of cost, {slo_error:+.2%} of SLO")
    if options.json:
        found = {
            "trace": options.trace.name.partition(".")[0],
            "options": {name: value for name, value in vars(options).items() if name not in ("trace", "json")},
            "num_requests": len(trace),
            "calibration": speeds,
            "real": {name: value for name, value in real.items() if name != "step_models"},
            "simulated": simulated,
            "cost_error": round(cost_error, 4),
            "slo_error": round(slo_error, 4),
            "scenario": scenario.model_dump(mode="json"),
        }
        environment.write(options.json, {**head, **found})
    return int(abs(cost_error) > COST_TOLERANCE or abs(slo_error) > SLO_TOLERANCE or real["num_lost"] > 0)


def fitted(trace: Trace, rate_per_s: float, span_s: float, shrink: float) -> Trace:
    """The trace with lengths and a rate that this machine can serve. The same every time."""
    rng = random.Random(0)
    copies = rate_per_s * span_s / max(1, len(trace))
    rows = []
    for at_s, prompt, output in zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True):
        for copy in range(int(copies + rng.random())):
            moved_s = min(span_s, at_s + (rng.uniform(0.0, 2.0) if copy else 0.0))
            lengths = (
                min(MAX_PROMPT_TOKENS, max(1, round(prompt / shrink))),
                min(MAX_OUTPUT_TOKENS, max(2, round(output / shrink))),
            )
            rows.append((moved_s, *lengths))
    rows.sort()
    times_s, prompts, outputs = zip(*rows, strict=True)
    return Trace(trace.name, array("d", times_s), array("l", prompts), array("l", outputs))


def _calibrated() -> dict[str, dict[str, float]]:
    """The ``speed`` section of each pool, measured on a server of it alone."""
    [model] = config()["models"]
    found = {}
    for pool in model["pools"]:
        with running(alone(model, pool)) as server:
            found[pool["name"]] = asyncio.run(calibrate(server, MODEL, pool["name"])).as_config()
        print(f"{pool['name']}: {found[pool['name']]}", file=sys.stderr)
    return found


async def _replay(server: RunningServer, trace: Trace) -> dict[str, Any]:
    rng = random.Random(1)
    await Driver(server.port, MODEL).send(Due(0.0, "warm up", 8))  # the first answer of an engine is its slowest
    driver = Driver(server.port, MODEL)
    schedule = [
        Due(at_s, tuple(rng.randint(FIRST_ID, LAST_ID) for _ in range(prompt)), output)
        for at_s, prompt, output in zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    ]
    step_models: dict[str, list[StepModel]] = {pool: [] for pool in USD_PER_HOUR}
    watcher = asyncio.create_task(_watch_speeds(server, step_models))
    async with sampled(server, driver.run) as samples:
        run = await driver.drive(schedule)
    watcher.cancel()
    usd, hours = usd_of(samples, trace.span_s)
    return {
        "usd": usd,
        "hours": hours,
        "slo": sum(map(_is_met, run.sent)) / len(run.sent),
        "num_lost": len(run.failed),
        "served": _served(run),
        "driver_late_s": round(run.late_s, 3),
        "step_models": {pool: found[-1] for pool, found in step_models.items() if found},
    }


async def _watch_speeds(server: RunningServer, found: dict[str, list[StepModel]]) -> None:
    """What each pool's replicas say a step costs them; the last word counts."""
    while True:
        with contextlib.suppress(OSError, ValueError):
            for replica in (await asyncio.to_thread(server.status))["replicas"]:
                if replica["load"] and replica["load"]["work"][0] > 100:
                    found[replica["pool"]].append(StepModel.of(replica["load"]))
        await asyncio.sleep(5.0)


def _is_met(sent: Any) -> bool:
    """As the simulator counts it."""
    if not sent.is_whole or sent.ttft_s > TTFT_SLO_S:
        return False
    return bool((sent.end_s - sent.first_s) / (sent.due.output_tokens - 1) <= TPOT_SLO_S)


def _served(run: Run) -> dict[str, int]:
    return {pool: sum(sent.pool == pool for sent in run.sent) for pool in USD_PER_HOUR}


def scenario_of(decisions: list[dict[str, Any]], step_models: dict[str, StepModel]) -> Scenario:
    """The simulator's fleet: the config's bounds and prices, the speeds and cold starts of this run."""
    given = config()["models"][0]
    pools = []
    for pool in given["pools"]:
        name = pool["name"]
        starts_s = [seconds for each in decisions for seconds in each["fleet"][name]["cold_starts_s"]]
        model = step_models.get(name) or next(iter(step_models.values()))
        mean_s = statistics.fmean(starts_s) if starts_s else 15.0
        spread_s = statistics.stdev(starts_s) if len(starts_s) > 1 else 0.0
        pools.append(
            {
                "name": name,
                "usd_per_hour": pool["usd_per_hour"],
                "replicas": {**pool["replicas"], "initial": pool["replicas"]["min"]},
                "cold_start": {"mean_s": round(mean_s, 2), "cv": round(spread_s / mean_s, 3)},
                "engine": {
                    **asdict(model),
                    "c0_s": max(model.c0_s, 1e-6),
                    "max_num_seqs": pool["engine"]["max_num_seqs"],
                },
                "fallback": pool.get("fallback"),
            }
        )
    slo = {"ttft_s": TTFT_SLO_S, "tpot_s": TPOT_SLO_S}
    return Scenario.model_validate({"slo": slo, "decision_interval_s": 2.0, "pools": pools})


def _tuning() -> Tuning:
    given = config()["autoscaler"]
    return Tuning(
        min_hold_s=given["min_hold_s"],
        relearn_s=given["relearn_s"],
        patience_s=given["patience_s"],
        back_off_s=given["back_off_s"],
    )


def _summary(outcomes: list[Outcome]) -> dict[str, Any]:
    pools = list(USD_PER_HOUR)
    return {
        "num_seeds": len(outcomes),
        "usd": statistics.fmean(outcome.usd for outcome in outcomes),
        "slo": statistics.fmean(outcome.slo for outcome in outcomes),
        "hours": {
            pool: round(statistics.fmean(outcome.replica_hours[index] for outcome in outcomes), 4)
            for index, pool in enumerate(pools)
        },
        "served": {
            pool: round(statistics.fmean(outcome.served[index] for outcome in outcomes))
            for index, pool in enumerate(pools)
        },
    }


if __name__ == "__main__":
    sys.exit(main())
