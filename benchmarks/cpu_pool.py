"""What a CPU pool beside the GPU pool is worth, simulated: ``python -m benchmarks.cpu_pool --low FILE --heavy FILE``.

Our policy on the reference fleet, with the GPU pool alone and with the CPU pool at three prices (on demand, spot,
already paid for), at low load, moderate load and heavy load, through an outage of the GPU pool, and with a GPU cold
start of 30 s instead of 180 s. ``--low`` is a trace of short requests (BurstGPT's), ``--heavy`` one that keeps GPUs
busy (Azure's conversations). Writes benchmarks/results/cpu_pool.json.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import environment
from benchmarks.simulator.__main__ import SCENARIO
from benchmarks.simulator.ours import Ours
from benchmarks.simulator.scenario import Outage, Scenario, read_scenario
from benchmarks.simulator.simulation import simulate
from benchmarks.simulator.trace import Trace, read_trace

RESULT = Path(__file__).parent / "results" / "cpu_pool.json"
CPU_USD_PER_HOUR = (1.43, 0.48, 0.10)
_GPU, _CPU = "gpu", "cpu"
_LOW_PER_S, _SPAN_S = 0.1, 8 * 3600.0


@dataclass(frozen=True, slots=True)
class Case:
    """One load on one fleet."""

    name: str
    trace: Trace
    gpu_cold_start_s: float = 180.0
    outage_s: tuple[float, float] | None = None
    """From when until when there is no GPU."""


def cases(low: Trace, heavy: Trace) -> Iterator[Case]:
    """In the order of the page that quotes them (docs/autoscaling.md)."""
    quiet = low.resampled(_SPAN_S, _LOW_PER_S, seed=1)
    moderate = low.part(0.0, _SPAN_S)
    yield Case("low load", quiet)
    yield Case("low load, GPU cold start 30 s", quiet, gpu_cold_start_s=30.0)
    yield Case("moderate load", moderate)
    yield Case("moderate load, GPU cold start 30 s", moderate, gpu_cold_start_s=30.0)
    yield Case("heavy load", heavy)
    yield Case("heavy load, GPU cold start 30 s", heavy, gpu_cold_start_s=30.0)
    yield Case("low load, no GPU for 2 h", quiet, outage_s=(3 * 3600.0, 5 * 3600.0))
    yield Case("heavy load, no GPU for 10 min", heavy, outage_s=(1200.0, 1800.0))


def fleets(scenario: Scenario, case: Case) -> Iterator[tuple[str, float | None, Scenario]]:
    """(name, price of the CPU pool, fleet)"""
    outages = (
        (Outage(pool=_GPU, start_s=case.outage_s[0], end_s=case.outage_s[1], max_replicas=0),) if case.outage_s else ()
    )
    scenario = scenario.with_cold_start(_GPU, case.gpu_cold_start_s).model_copy(update={"outages": outages})
    yield "GPU alone", None, scenario.only(_GPU)
    for usd_per_hour in CPU_USD_PER_HOUR:
        pools = tuple(
            pool.model_copy(update={"usd_per_hour": usd_per_hour}) if pool.name == _CPU else pool
            for pool in scenario.pools
        )
        yield f"CPU at ${usd_per_hour:.2f}/h", usd_per_hour, scenario.model_copy(update={"pools": pools})


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.cpu_pool", description=__doc__)
    options.add_argument("--low", type=Path, required=True, metavar="FILE", help="trace of short requests")
    options.add_argument("--heavy", type=Path, required=True, metavar="FILE", help="trace that keeps GPUs busy")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help="default: %(default)s")
    chosen = options.parse_args(arguments)
    head = environment.describe()
    scenario = read_scenario(SCENARIO)
    rows = []
    for case in cases(read_trace(chosen.low), read_trace(chosen.heavy)):
        print(f"{case.name}: {len(case.trace) / case.trace.span_s:.2f} requests/s", flush=True)
        for name, usd_per_hour, fleet in fleets(scenario, case):
            outcomes = [simulate(fleet, case.trace, Ours(fleet), seed) for seed in range(1, chosen.seeds + 1)]
            usd = statistics.fmean(outcome.usd for outcome in outcomes)
            slo = statistics.fmean(outcome.slo for outcome in outcomes)
            hours = [
                statistics.fmean(figures)
                for figures in zip(*(outcome.replica_hours for outcome in outcomes), strict=True)
            ]
            served = [
                statistics.fmean(figures) for figures in zip(*(outcome.served for outcome in outcomes), strict=True)
            ]
            print(
                f"  {name:<16} ${usd:7.2f}   {slo:7.2%} in SLO   GPU h {hours[0]:6.2f}   CPU h {sum(hours[1:]):6.2f}",
                flush=True,
            )
            rows.append(
                {
                    "case": case.name,
                    "requests_per_s": round(len(case.trace) / case.trace.span_s, 3),
                    "span_h": round(case.trace.span_s / 3600.0, 2),
                    "gpu_cold_start_s": case.gpu_cold_start_s,
                    "outage_s": case.outage_s,
                    "fleet": name,
                    "cpu_usd_per_hour": usd_per_hour,
                    "usd": round(usd, 2),
                    "slo": round(slo, 5),
                    "gpu_hours": round(hours[0], 2),
                    "cpu_hours": round(sum(hours[1:]), 2),
                    "served_by_cpu": round(sum(served[1:]) / len(case.trace), 4),
                }
            )
    environment.write(chosen.json, {**head, "num_seeds": chosen.seeds, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
