"""The table of docs/benchmarking.md from a result: ``python -m benchmarks.peers.page benchmarks/results/peers.json``.

Prints Markdown. Figures in bold are those in which a contender is ahead of Ballast beyond noise.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.ratios import METRICS

_HEADINGS = ("C", "contender", "tokens/s", "to Ballast", "TTFT p50 (ms)", "to Ballast", "TPOT p50 (ms)", "to Ballast",
             "CPU per token (µs)", "failed")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.page", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="what `ballast bench peers --json` wrote")
    document = json.loads(parser.parse_args(arguments).file.read_text())
    print("\n".join(lines(document)))
    return 0


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The table, and a line for each peer that was not measured."""
    yield f"| {' | '.join(_HEADINGS)} |"
    yield "|---" * len(_HEADINGS) + "|"
    for row in document["summary"]:
        case = f"{row['concurrency']}" + ("" if row["mode"] == "greedy" else f", {row['mode']}")
        cells = [cell for metric in METRICS for cell in (_value(row, metric), _ratio(row, metric))]
        words = (case, row["contender"], *cells, _value(row, "cpu_us_per_token"), str(row["num_failed"]))
        yield f"| {' | '.join(words)} |"
    for name, reason in document["missing"].items():
        yield f"\nNot measured: {name}: {reason}"


def _value(row: Mapping[str, Any], metric: str) -> str:
    value = row.get(metric)
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(row: Mapping[str, Any], metric: str) -> str:
    if not row["ratios"]:
        return ""
    found = row["ratios"][metric]
    if found["value"] is None:
        return "-"
    if found["ci95"] is None:
        return f"{found['value']:.2f} ?"
    low, high = found["ci95"]
    words = f"{found['value']:.2f} ({low:.2f}–{high:.2f})"
    return f"**{words}**" if found["judgement"] == "ahead" else words


if __name__ == "__main__":
    sys.exit(main())
