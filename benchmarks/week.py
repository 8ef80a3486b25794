"""How long a week of 2.4 million requests takes to simulate: ``python -m benchmarks.week --trace FILE``.

The week is the trace resampled to 7 days at 4 requests per second (`Trace.resampled`, seed 1). Prints seconds per
policy on one core, and writes them to benchmarks/results/week.json.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import environment
from benchmarks.simulator.__main__ import SCENARIO
from benchmarks.simulator.contenders import CONTENDERS, fleet_for
from benchmarks.simulator.scenario import read_scenario
from benchmarks.simulator.simulation import simulate
from benchmarks.simulator.trace import read_trace

RESULT = Path(__file__).parent / "results" / "week.json"
SPAN_S = 7 * 86_400.0
RATE_PER_S = 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.week", description=__doc__)
    options.add_argument("--trace", type=Path, required=True, metavar="FILE")
    options.add_argument("--policy", default="ours,ray", help="comma-separated (default: %(default)s)")
    options.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    chosen = options.parse_args(arguments)
    head = environment.describe()
    scenario = read_scenario(SCENARIO)
    trace = read_trace(chosen.trace).resampled(SPAN_S, RATE_PER_S, seed=1)
    runs = []
    for name in chosen.policy.split(","):
        contender = CONTENDERS[name]
        setting = contender.settings[-1]
        fleet = fleet_for(name, setting, scenario)
        began_s = time.process_time()
        outcome = simulate(fleet, trace, contender.make(fleet, **setting), 1)
        cpu_s = time.process_time() - began_s
        print(
            f"{name:<8} {len(trace):,} requests in {cpu_s:.1f} s of CPU time ({outcome.wall_s:.1f} s), "
            f"${outcome.usd:.0f}, {outcome.slo:.2%} in SLO",
            flush=True,
        )
        runs.append(
            {
                "policy": name,
                "setting": dict(setting),
                "cpu_s": round(cpu_s, 1),
                "wall_s": round(outcome.wall_s, 1),
                "decide_s": round(outcome.decide_s, 1),
                "usd": round(outcome.usd, 2),
                "slo": round(outcome.slo, 5),
            }
        )
    document = {**head, "trace": trace.name, "num_requests": len(trace), "span_s": SPAN_S, "runs": runs}
    environment.write(chosen.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
