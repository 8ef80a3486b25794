"""Does `ballast bench compare` judge rightly? ``python -m benchmarks.compare_check [--pairs 20] [--json FILE]``.

Pairs of runs against the null server, whose times jitter as an engine's do: A and B of the same speed, and C made ten
percent slower. Interleaved: each of A, B, C in turn. `compare` should find no regression in A and B, and one in A
and C.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.load.null_server import Manners
from benchmarks.runs import compare, serve
from benchmarks.runs.document import read

SAME = Manners(first_s=0.04, step_s=0.008, jitter=0.3)
SLOWER = replace(SAME, first_s=SAME.first_s * 1.1, step_s=SAME.step_s * 1.1)
LOAD = ("--rate", "80", "--prompt-tokens", "32", "--output-tokens", "16", "--rounds", "2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; the figures judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_check", description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first pair, and its seed")
    parser.add_argument("--duration", default="2s", help="of each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, after those in it")
    options = parser.parse_args(arguments)
    head = environment.describe()
    pairs: list[dict[str, Any]] = []
    if options.json and options.first:
        pairs = json.loads(options.json.read_text())["pairs"]
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(started(manners)) for manners in (SAME, SAME, SLOWER)]
        for number in range(options.first, options.first + options.pairs):
            pairs.append(_pair(number, ports, options.duration))
            print(
                f"pair {number}: same {pairs[-1]['same']['worse']}, slower {pairs[-1]['slower']['worse']}", flush=True
            )
    document = {
        **head,
        "server": {"same": asdict(SAME), "slower": asdict(SLOWER)},
        "load": [*LOAD, "--duration", options.duration],
        "num_pairs": len(pairs),
        "num_same_without_regression": sum(not pair["same"]["is_regression"] for pair in pairs),
        "num_slower_with_regression": sum(pair["slower"]["is_regression"] for pair in pairs),
        "pairs": pairs,
    }
    if options.json:
        environment.write(options.json, document)
    print({name: value for name, value in document.items() if name.startswith("num_")})
    return 0


@contextlib.contextmanager
def started(manners: Manners) -> Iterator[int]:
    """The port of a null server with these manners."""
    names = (f"--{name.replace('_', '-')}" for name in asdict(manners))
    options = [part for name, value in zip(names, asdict(manners).values(), strict=True) for part in (name, str(value))]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.load.null_server", *options], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["port"])
    finally:
        process.kill()
        process.communicate()


def _pair(number: int, ports: Sequence[int], duration: str) -> dict[str, Any]:
    """One run of each server, and the two comparisons."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for place, port in enumerate(ports):
            out = Path(folder) / "abc"[place]
            # Seeds differ within a pair: the words and the arrivals are others, as they are in two real runs.
            seed = str(3 * number + place)
            given = (*LOAD, "--duration", duration, "--url", f"http://127.0.0.1:{port}", "--seed", seed, "--json",
                     "--workers", "1", "--max-delay-ms", "1000", "--out", str(out))  # fmt: skip
            _quietly(given)
            found.append(compare.read_side(read(out)))
        a, b, c = found
        return {"number": number, "same": _judged(a, b), "slower": _judged(a, c)}


def _quietly(given: Sequence[str]) -> None:
    """Without the document on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        serve.main(given)


def _judged(a: compare.Side, b: compare.Side) -> dict[str, Any]:
    found = compare.describe(compare.compare(a, b, compare.Tolerance()), (a, b))
    ratios = {
        metric["name"]: [round(metric[key], 4) for key in ("effect", "low", "high")] for metric in found["metrics"]
    }
    return {"is_regression": found["is_regression"], "worse": found["worse"], "ratios": ratios}


if __name__ == "__main__":
    sys.exit(main())
