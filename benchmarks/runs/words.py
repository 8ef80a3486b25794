"""A round's figures in words, for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.runs.summary import PERCENTILES

_WIDTH = 120
LABELS = {
    "ttft_ms": "TTFT", "ttft_service_ms": "  service only", "itl_ms": "ITL", "tpot_ms": "TPOT",
    "e2e_ms": "E2E", "e2e_service_ms": "  service only", "client_queue_ms": "held back here",
}  # fmt: skip

SERVER_LABELS = {
    "server_ttft_ms": "TTFT", "server_itl_ms": "ITL", "server_e2e_ms": "E2E", "gateway_queue_ms": "queue, gateway",
    "engine_queue_ms": "queue, engine", "prefill_ms": "prefill", "decode_ms": "decode",
    "gateway_overhead_ms": "gateway's own work",
}  # fmt: skip
"""What the server says of the same requests, from its histograms: within a bucket, values are guessed."""


def terminal() -> Console:
    """stdout, wide enough for the tables where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)


def verdict(document: Mapping[str, Any]) -> str:
    """One line: whether what had to hold has held."""
    requests, goodput = document["requests"], document["goodput"]
    if document["generator"]["complaint"]:
        return f"NOT VALID: {document['generator']['complaint']}"
    if not goodput or goodput["share_in_slo"] is None:
        return "NOTHING MEASURED: no request was answered or failed"
    held = "SLO HELD" if goodput["is_slo_held"] else "SLO MISSED"
    errors = f", {requests['num_error']} failed" if requests["num_error"] else ""
    return (
        f"{held}: {goodput['share_in_slo']:.2%} in SLO (95 % CI {share_interval(goodput)}), objective "
        f"{goodput['objective']:.2%}; {requests['num_ok']} answered{errors}"
    )


def share_interval(goodput: Mapping[str, Any]) -> str:
    """Of the share in SLO."""
    if goodput["share_in_slo_ci95"] is None:
        return "not known"
    low, high = goodput["share_in_slo_ci95"]
    return f"{low:.2%} to {high:.2%}"


def chaos_verdict(document: Mapping[str, Any]) -> str:
    """One line of a run with faults: whether all was as before after each."""
    found, (first, *_) = document["chaos"], document["rounds"]
    if first["generator"]["complaint"]:
        return verdict(first)
    recovered = "RECOVERED" if found["is_recovered"] else "NOT RECOVERED"
    longest_s = found["longest_recovery_s"]
    slowest = f", the longest after {longest_s:.1f} s" if longest_s is not None else ""
    bound = f" (allowed: {found['max_recovery_s']:g} s)" if found["max_recovery_s"] is not None else ""
    requests = first["requests"]
    number = requests["num_ok"] + requests["num_error"]
    return (
        f"{recovered} from {found['num_recovered']} of {found['num_faults']} faults{slowest}{bound}; "
        f"{requests['num_error']} of {number} requests failed"
    )


MARK_HEADER = (
    "at s", "fault", "recovered in", "in SLO before", "during", "after", "failed", "TTFT before", "during", "worst",
    "after",
)  # fmt: skip


def mark_rows(marks: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row of cells under ``MARK_HEADER`` for each fault."""
    for mark in marks:
        if mark["at_s"] is None or "before" not in mark:
            yield (f"({mark['planned_s']:g})", mark["name"], "did not happen", *[""] * (len(MARK_HEADER) - 3))
            continue
        before, during, after = mark["before"], mark["during"], mark["after"]
        recovery_s = mark["recovery_s"]
        yield (
            f"{mark['at_s']:.1f}", mark["name"], f"{recovery_s:.1f} s" if recovery_s is not None else "not known",
            *(_share(each["share_in_slo"]) for each in (before, during, after)),
            str(during["num_error"] + after["num_error"]),
            *(_ms(each) for each in (before["ttft_p50_ms"], during["ttft_p50_ms"], during["ttft_max_ms"],
                                     after["ttft_p50_ms"])),
        )  # fmt: skip


GROWTH_HEADER = ("", "unit", "level", "per hour", "95 % interval", "")
GROWTH_LABELS = {
    "rss_mib": ("memory", "MiB"), "num_fds": ("descriptors", "number"), "num_threads": ("threads", "number"),
    "num_processes": ("processes", "number"),
}  # fmt: skip


def growth_rows(leaks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row of cells under ``GROWTH_HEADER`` for each of what a soak has looked at."""
    for name, entry in leaks.items():
        low, high = entry["ci95_per_hour"]
        yield (
            *GROWTH_LABELS[name], f"{entry['level']:.1f}", f"{entry['per_hour']:+.2f}", f"{low:+.2f} to {high:+.2f}",
            "grows" if entry["is_leak"] else "",
        )  # fmt: skip


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def render(document: Mapping[str, Any]) -> RenderableType:
    """Verdict, percentiles with half their 95 % interval (?: too few beyond to have one), rates, errors, cost."""
    line = verdict(document)
    style = "bold green" if line.startswith("SLO HELD") else "bold red"
    parts: list[RenderableType] = [Text(line, style=style)]
    if document["latency"]:
        parts += [_latencies(document["latency"], document["server"]), Text(_rates(document))]
    parts += [
        Text(
            f"{entry['number']} x {entry['status'] or 'no status'}: {entry['error']} "
            f"(ids: {', '.join(entry['request_ids'])})",
            style="red",
        )
        for entry in document["errors"]
    ]
    parts += [Text(_cost(entry)) for entry in document.get("cost", ())]
    return Group(*parts)


def _latencies(latency: Mapping[str, Any], server: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("ms", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for name in PERCENTILES:
        table.add_column(name, justify="right", no_wrap=True)
    for name, label in LABELS.items():
        row = latency[name]
        if row["n"]:
            table.add_row(label, str(row["n"]), *(_cell(row[share]) for share in PERCENTILES))
    for name, label in SERVER_LABELS.items():
        if row := server.get(name):
            cells = (_cell(row[share]) for share in PERCENTILES)
            table.add_row(server_label(label, row), str(row["n"]), *cells, style="dim")
    return table


def server_label(label: str, row: Mapping[str, Any]) -> str:
    """With the mean, which a histogram knows exactly."""
    return f"server: {label} (mean {row['mean']:.1f})"


def _cell(entry: Mapping[str, Any]) -> str:
    if entry.get("is_at_most"):
        return f"≤ {entry['value']:.1f}"
    if entry["ci95"] is None:
        return f"{entry['value']:.1f} ?"
    low, high = entry["ci95"]
    return f"{entry['value']:.1f} ±{(high - low) / 2.0:.1f}"


def _rates(document: Mapping[str, Any]) -> str:
    throughput, goodput = document["throughput"], document["goodput"]
    return (
        f"{throughput['requests_per_s']:.2f} requests/s and {throughput['output_tokens_per_s']:.0f} output tokens/s "
        f"answered; in SLO {goodput['requests_per_s']:.2f} and {goodput['output_tokens_per_s']:.0f}. "
        f"Prompts {throughput['prompt_tokens_mean']:.0f} tokens ({throughput['cached_prompt_share']:.0%} cached), "
        f"answers {throughput['output_tokens_mean']:.0f}"
    )


def _cost(entry: Mapping[str, Any]) -> str:
    price, good = entry["usd_per_million_tokens"], entry["usd_per_million_tokens_at_slo"]
    if entry["usd_per_hour"] is None:
        return f"pool {entry['pool']}: what it cost is not known: {entry['basis']}"
    if price is None:
        return f"pool {entry['pool']}: no tokens for ${entry['usd_per_hour']:.2f}/h"
    at_slo = f"${good:.2f}" if good is not None else "no token"
    return (
        f"pool {entry['pool']}: ${price:.2f} per million tokens, {at_slo} at the SLO "
        f"(${entry['usd_per_hour']:.2f}/h, {entry['basis']})"
    )
