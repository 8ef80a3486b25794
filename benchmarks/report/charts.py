"""The charts of a run. Each is one matplotlib figure, written as SVG for the page and as PNG beside it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from benchmarks.report.series import Series
from benchmarks.runs.rows import Rows
from benchmarks.runs.slo import Slo
from benchmarks.runs.summary import sample

BLUE, ORANGE, GREEN, RED, GREY = "#2563a8", "#d97706", "#2f855a", "#c53030", "#6b7280"
_WIDTH_IN = 9.0
_MS_PER_S = 1e3

PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("requests in the engine", "requests", ("running_requests", "waiting_requests")),
    ("waiting in the gateway", "requests", ("gateway_waiting_requests", "in_flight_requests")),
    ("KV cache", "share in use", ("kv_cache_usage",)),
    ("replicas", "ready", ("ready_replicas",)),
    ("memory", "MiB", ("rss_mib",)),
    ("CPU", "cores", ("cpu_cores",)),
    ("descriptors and threads", "number", ("num_fds", "num_threads")),
    ("GPU power", "W", ("gpu_power_w",)),
    ("GPU", "share in use", ("gpu_utilisation",)),
)
"""Title, unit and the series of each panel; those that the server does not have are left out."""


def _axes(height_in: float, rows: int = 1, columns: int = 1, *, shares_x: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=shares_x)
    axes = list(grid.flat)
    for each in axes:
        each.grid(True, color="#e5e7eb", linewidth=0.7)
        each.set_axisbelow(True)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
        each.tick_params(labelsize=8)
        each.xaxis.label.set_size(9)
        each.yaxis.label.set_size(9)
    return figure, axes


def knee_chart(rounds: Sequence[Mapping[str, Any]], sweep: Mapping[str, Any], slo: Slo) -> Figure:
    """Goodput and tails against the offered rate, with the highest rate in SLO and its interval."""
    measured = [each for each in rounds if each["goodput"]]
    rates = np.array([each["rate_per_s"] for each in measured])
    figure, (left, right) = _axes(3.6, 1, 2)
    left.plot(np.unique(rates), np.unique(rates), color=GREY, linewidth=1, linestyle=":", label="offered")
    _line(left, rates, [each["throughput"]["requests_per_s"] for each in measured], BLUE, "answered")
    _line(left, rates, [each["goodput"]["requests_per_s"] for each in measured], GREEN, "in SLO")
    left.set(xlabel="offered requests/s", ylabel="requests/s", xscale="log", yscale="log")
    for name, bound, colour, bound_s in (
        ("ttft", "TTFT", BLUE, slo.ttft_s),
        ("itl", "TPOT", ORANGE, slo.tpot_s),
    ):
        values = [each["latency"][f"{name}_ms"]["p99"]["value"] for each in measured]
        _line(right, rates, values, colour, f"{name.upper()} p99")
        if bound_s is not None:
            right.axhline(bound_s * _MS_PER_S, color=colour, linewidth=1, linestyle="--", label=f"{bound} bound")
    right.set(xlabel="offered requests/s", ylabel="ms", xscale="log", yscale="log")
    highest = sweep["highest_rate_in_slo_per_s"]
    for axes in (left, right):
        if highest["value"]:
            axes.axvline(highest["value"], color=GREEN, linewidth=1.2)
            low, high = highest["ci95"]
            axes.axvspan(low or rates.min(), high or rates.max(), color=GREEN, alpha=0.12, linewidth=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=8, frameon=False)
    return figure


def _line(axes: Axes, rates: NDArray[np.float64], values: Sequence[float | None], colour: str, label: str) -> None:
    """Each round a point, and a line through the medians of each rate; NaN where there is nothing."""
    known = np.array([np.nan if value is None else value for value in values])
    axes.plot(rates, known, "o", color=colour, markersize=4, alpha=0.5)
    by_rate = np.unique(rates)
    axes.plot(by_rate, [np.median(known[rates == rate]) for rate in by_rate], color=colour, linewidth=1.5, label=label)


def tails_chart(rounds: Sequence[Rows]) -> Figure:
    """Latency by percentile, the rare ones stretched, as HdrHistogram plots them: from the intended start and, thin,
    as service time. Where the two part, requests were held back."""
    figure, axes = _axes(3.4, 1, 3)
    for place, (name, twin) in enumerate((("ttft", "ttft_service"), ("itl", None), ("e2e", "e2e_service"))):
        for kind, colour, width in ((name, BLUE, 1.8), (twin, ORANGE, 1.0)):
            if kind is None:
                continue
            values_ms = np.sort(np.concatenate([sample(rows, kind).values_us for rows in rounds])) / 1e3
            if not len(values_ms):
                continue
            # As many points as the eye can tell apart, denser towards the tail.
            beyond = np.geomspace(1.0, max(1.0 / len(values_ms), 1e-5), 200)
            ranks = np.clip(np.ceil((1.0 - beyond) * len(values_ms)).astype(int) - 1, 0, len(values_ms) - 1)
            label = "service only" if kind == twin else "from intended start" if twin else "between events"
            axes[place].plot(1.0 / beyond, values_ms[ranks], color=colour, linewidth=width, label=label)
        axes[place].set(title=name.upper(), xscale="log", xlabel="percentile", ylabel="ms" if place == 0 else "")
        axes[place].set_xticks([1, 2, 10, 100, 1000], ["0", "50", "90", "99", "99.9"])
        axes[place].minorticks_off()
        axes[place].set_ylim(bottom=0)
        axes[place].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def time_chart(found: Series, marks: Sequence[Mapping[str, Any]], slo: Slo) -> Figure:
    """TTFT and rates over the run, with what happened meanwhile."""
    figure, (upper, lower) = _axes(4.6, 2, 1, shares_x=True)
    upper.plot(found.at_s, found.ttft_p99_ms, color=ORANGE, linewidth=1.2, label="TTFT p99")
    upper.plot(found.at_s, found.ttft_p50_ms, color=BLUE, linewidth=1.5, label="TTFT p50")
    if slo.ttft_s is not None:
        upper.axhline(
            slo.ttft_s * _MS_PER_S, color=GREY, linewidth=1, linestyle="--", label=f"TTFT bound {slo.ttft_s:g} s"
        )
    upper.set(ylabel="ms", ylim=(0, _top_ms(found, slo)))
    lower.plot(found.at_s, found.offered_per_s, color=GREY, linewidth=1, linestyle=":", label="offered")
    lower.plot(found.at_s, found.answered_per_s, color=BLUE, linewidth=1.2, label="answered")
    lower.plot(found.at_s, found.in_slo_per_s, color=GREEN, linewidth=1.2, label="in SLO")
    if found.failed_per_s.any():
        lower.plot(found.at_s, found.failed_per_s, color=RED, linewidth=1.2, label="failed")
    lower.set(ylabel="requests/s", xlabel="seconds after the start", ylim=(0, None))
    for mark in marks:
        if mark["at_s"] is None:
            continue
        for axes in (upper, lower):
            if mark.get("recovery_s"):
                axes.axvspan(mark["at_s"], mark["at_s"] + mark["recovery_s"], color=RED, alpha=0.08, linewidth=0)
            axes.axvline(mark["at_s"], color=RED, linewidth=1, linestyle="--")
        upper.annotate(mark["name"], (mark["at_s"], 1.0), xycoords=("data", "axes fraction"), fontsize=8, color=RED,
                       rotation=90, va="top", ha="right")  # fmt: skip
    for axes in (upper, lower):
        axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 0.98))
    return figure


def _top_ms(found: Series, slo: Slo) -> float | None:
    """Room for what was measured, and for the bound where that does not flatten it."""
    if np.isnan(found.ttft_p99_ms).all():
        return None
    most_ms = float(np.nanmax(found.ttft_p99_ms))
    return 1.1 * max(most_ms, min((slo.ttft_s or 0.0) * _MS_PER_S, 2.0 * most_ms))


def server_chart(timeline: Sequence[Mapping[str, Any]]) -> Figure | None:
    """What the server said of itself over the run; None when it said nothing."""
    samples = with_cpu_cores(timeline)
    panels = []
    for title, unit, names in PANELS:
        lines = {name: [(each["at_s"], each[name]) for each in samples if name in each] for name in names}
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        if lines:
            panels.append((title, unit, lines))
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    figure, axes = _axes(2.2 * rows, rows, min(3, len(panels)))
    for place, each in enumerate(axes):
        if place >= len(panels):
            each.set_visible(False)
            continue
        title, unit, lines = panels[place]
        for (name, points), colour in zip(lines.items(), (BLUE, ORANGE), strict=False):
            each.plot([at_s for at_s, _ in points], [value for _, value in points], color=colour, linewidth=1.4,
                      label=name.replace("_", " ").removeprefix("num "))  # fmt: skip
        each.set_title(title, fontsize=9)
        top = max(value for points in lines.values() for _, value in points)
        each.set(ylabel=unit, ylim=(0, 1.12 * top or 1.0))
        if len(lines) > 1:
            each.legend(fontsize=7, frameon=False)
    return figure


def with_cpu_cores(timeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The samples with cores in use since the one before."""
    found = [dict(each) for each in timeline]
    for before, each in pairwise(found):
        if "cpu_s" in before and "cpu_s" in each and each["at_s"] - before["at_s"] > 0.1:
            each["cpu_cores"] = max(0.0, (each["cpu_s"] - before["cpu_s"]) / (each["at_s"] - before["at_s"]))
    return found
