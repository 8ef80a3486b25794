"""Traces of a known shape, with the lengths of a real one: what no recorded trace holds, such as a flash crowd.

``python -m benchmarks.simulator.shapes --lengths FILE --out FOLDER`` writes one for each of `SHAPES`, to be read by
``ballast bench autoscale --trace``.
"""

import argparse
import gzip
import random
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulator.trace import Trace, TraceError, read_trace

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rate of requests changes over ``span_s`` seconds; it is ``peak_per_s`` at most."""

    span_s: float
    peak_per_s: float
    rate_per_s: Callable[[float], float]


SHAPES: Mapping[str, Shape] = {
    "steady": Shape(3 * _HOUR_S, 7.0, lambda _: 7.0),
    "ramp": Shape(4 * _HOUR_S, 20.5, lambda at_s: 0.5 + 20.0 * at_s / (4 * _HOUR_S)),
    "square": Shape(3 * _HOUR_S, 12.0, lambda at_s: 12.0 if at_s // 1200.0 % 2 else 1.5),
    "flash": Shape(6 * _HOUR_S, 25.0, lambda at_s: 25.0 if 10_000.0 <= at_s < 10_900.0 else 2.0),
    "trickle": Shape(48 * _HOUR_S, 0.02, lambda _: 0.02),
}
"""The rates suit the reference fleet, one GPU of which carries some six requests per second of `azure2023_conv`."""


def shaped(name: str, lengths: Trace, seed: int = 1) -> Trace:
    """Arrivals at random at the rate of ``SHAPES[name]``, each as long as some request of ``lengths``. Same arguments,
    same trace."""
    shape, draw = SHAPES[name], random.Random(seed)
    arrival_s, picked = array("d"), []
    at_s = draw.expovariate(shape.peak_per_s)
    while at_s < shape.span_s:
        if draw.random() * shape.peak_per_s < shape.rate_per_s(at_s):
            arrival_s.append(at_s)
            picked.append(draw.randrange(len(lengths)))
        at_s += draw.expovariate(shape.peak_per_s)
    return Trace(
        f"{name}_{lengths.name}",
        arrival_s,
        array("l", (lengths.prompt_tokens[index] for index in picked)),
        array("l", (lengths.output_tokens[index] for index in picked)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 where there is no such trace."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.simulator.shapes", description=__doc__)
    options.add_argument("--lengths", type=Path, required=True, metavar="FILE", help="trace whose lengths are drawn")
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the traces are written")
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args(arguments)
    try:
        lengths = read_trace(chosen.lengths)
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in SHAPES:
        trace = shaped(name, lengths, chosen.seed)
        path = chosen.out / f"{trace.name}.csv.gz"
        with gzip.open(path, "wt") as file:
            file.write("arrival_s,prompt_tokens,output_tokens\n")
            for row in zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True):
                file.write("{:.3f},{},{}\n".format(*row))
        print(f"{path}: {len(trace):,} requests in {trace.span_s / _HOUR_S:.2f} h")
    return 0


if __name__ == "__main__":
    sys.exit(main())
