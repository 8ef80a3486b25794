"""Two plots of a study as PNG: cost against SLO, and what our policy did over time. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib  # type: ignore[import-not-found, unused-ignore]  # in the benchmark extra alone

from benchmarks.simulator.outcome import Sample
from benchmarks.simulator.study import Study, is_reconstructed

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import LogFormatter

_DPI = 110
_LEAST_MISSED = 0.005
"""Per cent: what a logarithmic axis shows for none."""
_NUM_POINTS = 900
"""Of a timeline: what a screen can show."""


def plot_pareto(found: Study, path: Path) -> None:
    """Every setting that was tried, cost against share of requests that missed; the chosen ones with their
    intervals."""
    figure, axes = pyplot.subplots(figsize=(8.0, 5.0))
    for number, policy in enumerate(dict.fromkeys(row[0] for row in found.tried)):
        colour = f"C{number % 10}"
        rows = [row for row in found.tried if row[0] == policy]
        axes.scatter([row[2] for row in rows], [_missed(row[3]) for row in rows], s=18, color=colour, alpha=0.45)
        for result in found.results:
            if result.policy == policy and not result.is_default:
                axes.errorbar(
                    result.usd.mean,
                    _missed(result.slo.mean),
                    xerr=result.usd.ci95,
                    yerr=result.slo.ci95 * 100.0,
                    fmt="*" if policy == "ours" else "o",
                    markersize=15 if policy == "ours" else 7,
                    color=colour,
                    label=policy,
                    capsize=3,
                    zorder=3 if policy == "ours" else 2,
                )
    allowed = (1.0 - found.scenario.slo.objective) * 100.0
    axes.axhline(allowed, color="grey", linestyle="--", linewidth=1, label=f"the objective: {allowed:g} %")
    if found.references:
        axes.axvline(found.references.all_pools.lower_usd, color="black", linestyle=":", label="DP oracle, u = 0.85")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2.0, 0.5)))
    axes.set_xlabel("cost of the trace, US dollars")
    axes.set_ylabel(f"requests that miss the SLO, % (none: {_LEAST_MISSED:g})")
    axes.set_title(_title(found))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def plot_timeline(found: Study, path: Path) -> None:
    """Load, replicas of each pool, and misses of our policy's first run; of the first policy where ours was not run."""
    results = [result for result in found.results if not result.is_default]
    shown = next((result for result in results if result.policy == "ours"), results[0])
    rows = _thinned(shown.outcomes[0].timeline)
    hours = [row[0] / 3600.0 for row in rows]
    figure, (load, fleet, misses) = pyplot.subplots(3, 1, figsize=(9.0, 6.5), sharex=True)
    load.plot(hours, [row[1] for row in rows], linewidth=0.8)
    load.set_ylabel("requests / s")
    load.set_title(f"{_title(found)}: {shown.policy}")
    for index, pool in enumerate(found.scenario.pools):
        fleet.step(hours, [row[3][index] for row in rows], where="post", color=f"C{index}", label=f"{pool.name} ready")
        asked = [row[3][index] + row[4][index] for row in rows]
        fleet.step(hours, asked, where="post", color=f"C{index}", linestyle=":", label=f"{pool.name} with starting")
    fleet.set_ylabel("replicas")
    fleet.legend(fontsize=8)
    misses.plot(hours, [row[2] for row in rows], linewidth=0.8, color="C3")
    misses.set_ylabel("misses / s")
    misses.set_xlabel("hours")
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def _missed(slo: float) -> float:
    return max(_LEAST_MISSED, (1.0 - slo) * 100.0)


def _title(found: Study) -> str:
    return found.trace.name + (" (reconstructed)" if is_reconstructed(found.trace.name) else "")


_Row = tuple[float, float, float, tuple[int, ...], tuple[int, ...]]


def _thinned(timeline: Sequence[Sample]) -> list[_Row]:
    """(time, arrivals per second, misses per second, ready, starting), a few hundred of them."""
    size = max(1, len(timeline) // _NUM_POINTS)
    rows = []
    for start in range(0, len(timeline) - size, size):
        part = timeline[start : start + size]
        span_s = timeline[start + size].at_s - part[0].at_s
        rows.append(
            (
                part[0].at_s,
                sum(sample.num_arrived for sample in part) / span_s,
                sum(sample.num_missed for sample in part) / span_s,
                part[-1].num_ready,
                part[-1].num_starting,
            )
        )
    return rows
