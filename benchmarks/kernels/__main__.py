"""The kernels on the CPU against vLLM's own path and plain torch, in one process, one after the other in turn.

Every figure is the median of several steps; contenders take turns, so that what else runs on the machine meets all of
them alike. ``floor`` is one vectorised reading of the logits (numpy's maximum of their 16-bit words). One thread, as
torch is told here. Speed-ups are printed for the ops whose tests pass, and only for those.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.kernels.cases import FLAT_MODES, FLOOR, MODES, OP_OF, OURS, STOCK, TORCH, Case, flat, llm_like, make
from benchmarks.kernels.gate import is_guarded_by, red_ops
from kernels.warm_up import warm_up

RESULT = Path("benchmarks/results/kernels_cpu.json")
BATCHES, VOCABULARIES = (8, 32, 1, 64), (151_936, 128_256, 32_000)
QUICK_BATCHES, QUICK_VOCABULARIES = (8,), (32_000,)
_BUDGET_S = 0.2
"""Of rounds per case; at least three, at most ten."""
_TURN_S = 0.01
"""Of steps in a turn, at most ten: a short step that was interrupted must not stand for all of its turn."""


def cases(quick: bool) -> Iterator[Case]:
    for num_tokens in QUICK_VOCABULARIES if quick else VOCABULARIES:
        for num_rows in QUICK_BATCHES if quick else BATCHES:
            generator = torch.Generator().manual_seed(num_tokens + num_rows)
            logits = llm_like(num_rows, num_tokens, generator)
            for mode in MODES:
                yield make("LLM-like", mode, logits)
            logits = flat(num_rows, num_tokens, generator)
            for mode in FLAT_MODES:
                yield make("flat", mode, logits)


def measure(case: Case) -> dict[str, object]:
    """Medians in microseconds of each contender's step."""
    times: dict[str, list[float]] = {name: [] for name in case.steps}
    for step in case.steps.values():
        step()
    started_s = time.perf_counter()
    num_rounds = 0
    while num_rounds < 3 or (time.perf_counter() - started_s < _BUDGET_S and num_rounds < 10):
        num_rounds += 1
        for name, step in case.steps.items():
            times[name] += _turn(step)
    medians = {name: round(statistics.median(taken) * 1e6, 1) for name, taken in times.items()}
    return {
        "rows": case.rows,
        "mode": case.mode,
        "num_rows": case.num_rows,
        "num_tokens": case.num_tokens,
        "num_rounds": num_rounds,
        **{f"{name}_us": medians[name] for name in (FLOOR, OURS, TORCH, STOCK)},
        "times_stock": round(medians[STOCK] / medians[OURS], 2),
        "times_torch": round(medians[TORCH] / medians[OURS], 2),
        "floors": round(medians[OURS] / medians[FLOOR], 2),
    }


def _turn(step: Callable[[], object]) -> list[float]:
    """Seconds of each step."""
    taken: list[float] = []
    while len(taken) < 10 and sum(taken) < _TURN_S:
        before_s = time.perf_counter()
        step()
        taken.append(time.perf_counter() - before_s)
    return taken


def plot(results: Sequence[dict[str, object]], path: Path) -> None:
    """Speed-up over stock by mode, at the largest vocabulary, one bar per batch size."""
    import matplotlib as mpl  # in the benchmark extra alone

    mpl.use("Agg")
    from matplotlib import pyplot

    largest = max(int(str(row["num_tokens"])) for row in results)
    shown = [row for row in results if row["num_tokens"] == largest]
    labels = list(dict.fromkeys(f"{row['mode']}, {row['rows']}" for row in shown))
    batches = sorted({int(str(row["num_rows"])) for row in shown})
    figure, axes = pyplot.subplots(figsize=(11.0, 5.0))
    for number, batch in enumerate(batches):
        found = {
            f"{row['mode']}, {row['rows']}": float(str(row["times_stock"])) for row in shown if row["num_rows"] == batch
        }
        at = [index + (number - len(batches) / 2 + 0.5) * 0.8 / len(batches) for index in range(len(labels))]
        axes.bar(at, [found.get(label, 0) for label in labels], 0.8 / len(batches), label=f"B = {batch}")
    axes.axhline(1.0, color="grey", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel(f"times as fast as vLLM's sampler, V = {largest:,}")
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(row: dict[str, object]) -> str:
    name = f"{row['rows']:<9} {row['mode']:<22} B {row['num_rows']:>3} V {row['num_tokens']:>7}"
    ratios = f"stock × {row['times_stock']:>7}   torch × {row['times_torch']:>6}   floor × {row['floors']:>5}"
    return f"{name}   ours {row['ours_us']:>9} µs   {ratios}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if an op's tests are red."""
    parser = argparse.ArgumentParser(
        prog="ballast bench kernels",
        description=__doc__,
        epilog="Exit codes: 0 measured; 1 an op's tests are red, and nothing that rests on it was measured. "
        "Example: ballast bench kernels --quick --json kernels.json",
    )
    parser.add_argument("--quick", action="store_true", help="one batch size and one vocabulary")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of the speed-ups; needs matplotlib")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    head = environment.describe()
    warm_up_s = warm_up()
    red = red_ops()
    for op in red:
        print(f"{op}: its tests are red, nothing is measured that rests on it")
    results = []
    for case in cases(options.quick):
        if any(is_guarded_by(case, op, OP_OF) for op in red):
            continue
        results.append(measure(case))
        print(_line(results[-1]), flush=True)
        body = {**head, "num_threads": 1, "warm_up_s": round(warm_up_s, 2), "red_ops": red, "results": results}
        environment.write(options.json, body)  # each time: a run that is cut short leaves its figures
        gc.collect()
    if options.plot and results:
        plot(results, options.plot)
    return int(bool(red))


if __name__ == "__main__":
    sys.exit(main())
