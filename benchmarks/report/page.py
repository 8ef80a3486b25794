"""A run as one self-contained HTML page: the verdict first, then the evidence, then how it was made.

The charts are SVG inside the page, and PNG files beside it. The page loads nothing and runs no script.
"""

import base64
import html
import io
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.load.mistake import BenchError
from benchmarks.report.charts import knee_chart, server_chart, tails_chart, time_chart
from benchmarks.report.series import series
from benchmarks.runs.document import Document, Found, check_writable
from benchmarks.runs.rows import Rows, read_rows
from benchmarks.runs.slo import Slo
from benchmarks.runs.summary import PERCENTILES
from benchmarks.runs.sweep import sentence
from benchmarks.runs.words import (
    GROWTH_HEADER,
    LABELS,
    MARK_HEADER,
    SERVER_LABELS,
    chaos_verdict,
    growth_rows,
    mark_rows,
    server_label,
    share_interval,
    verdict,
)

NAME = "report.html"
_PNG_DPI = 144
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937 }
h1 { font-size: 1.5rem; margin-bottom: .3rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.verdict { font-size: 1.1rem; font-weight: 600; padding: .7rem 1rem; border-radius: 6px; margin: .4rem 0 }
.verdict { background: #fdecec; color: #8b1e1e }
.verdict.good { background: #e7f6ec; color: #1c5c38 } .note { color: #6b7280; font-size: .87rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; margin: .6rem 0 }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #e5e7eb; vertical-align: top }
th:first-child, td:first-child, th.words, td.words { text-align: left } th { color: #4b5563; font-weight: 600 }
td:not(.words) { white-space: nowrap } td small { color: #6b7280 } img { width: 100%; height: auto }
pre { background: #f6f7f8; padding: .8rem; font-size: 12px }
pre { white-space: pre-wrap; overflow-wrap: anywhere } details { margin: .6rem 0 }
"""


def write_report(found: Found) -> Path:
    """Write the page and its charts into the run's folder; returns the page. Raises BenchError for rows that are gone,
    for a run of a kind that has no page, and for a folder that cannot be written to."""
    document = found.document
    if "slo" not in document:
        raise BenchError(f"{found.folder}: a run of `bench {document['kind']}` has no page; it prints its table")
    check_writable(found.folder, "copy the run to a folder of your own")
    slo = Slo(**{name: document["slo"][name] for name in ("ttft_s", "tpot_s", "e2e_s", "objective")})
    rounds = [
        read_rows(found.rows_of(number), document["load"]["warmup_s"]) for number in range(len(document["rounds"]))
    ]
    charts = {name: _image(figure, name, found.folder) for name, figure in _figures(document, rounds, slo)}
    parts = [
        _heading(document),
        _slo_table(document, slo),
        _faults(document),
        *_section("Rate and latency", charts.get("knee")),
        "<h2>Percentiles</h2>",
        *(_percentiles(each) for each in document["rounds"] if each["latency"]),
        '<p class="note">Milliseconds. Below each value its 95 % interval, from a bootstrap over blocks of time; '
        "without one there were too few values beyond it. Latency counts from the intended start; service time from "
        "when the request could leave. What the server says of itself comes from its histograms: within a bucket its "
        "values are spread evenly.</p>",
        charts.get("tails", ""),
        *_section("Over time", "".join(picture for name, picture in charts.items() if name.startswith("time"))),
        *_section("The server's account", charts.get("server", "") + _server_tables(document)),
        _leaks(document),
        _cost(document),
        _errors(document),
        _making(document),
    ]
    title = html.escape(f"{document['kind']} of {document['target']['model']}")
    page = found.folder / NAME
    page.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>\n'
    )
    return page


def _figures(document: Document, rounds: Sequence[Rows], slo: Slo) -> Iterable[tuple[str, Figure]]:
    """Every chart that there is something to draw for."""
    measured = [rows for rows in rounds if len(rows)]
    if "sweep" in document:
        yield "knee", knee_chart(document["rounds"], document["sweep"], slo)
    if document["kind"] != "sweep":  # which has as many answers as rates
        if measured:
            yield "tails", tails_chart(measured)
        for number, rows in enumerate(rounds):
            if len(rows):
                marks = document["rounds"][number].get("marks", ())
                yield f"time-{number}", time_chart(series(rows, slo), marks, slo)
    timeline = [sample for each in document["rounds"] for sample in each["timeline"]]
    if len(document["rounds"]) == 1 and (figure := server_chart(timeline)) is not None:
        yield "server", figure


def _image(figure: Figure, name: str, folder: Path) -> str:
    """Written as PNG beside the page; as SVG in it, an image of its own so that no two share their ids."""
    figure.savefig(folder / f"{name}.png", dpi=_PNG_DPI)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    data = base64.b64encode(out.getvalue().encode()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}">'


def _section(title: str, content: str | None) -> list[str]:
    return [f"<h2>{html.escape(title)}</h2>", content] if content else []


def _heading(document: Document) -> str:
    """What was measured, and the verdict."""
    target, load = document["target"], document["load"]
    how = load["phases"] or load["trace"] or (f"{load['concurrency']} clients" if load["concurrency"] else None)
    rate = f"{load['rate_per_s']:g} requests/s" if load["rate_per_s"] is not None else "rates by search"
    return (
        f"<h1>{html.escape(document['kind'])}: {html.escape(target['model'])} at {html.escape(target['url'])}</h1>"
        f'<p class="note">{html.escape(how or rate)}, {_span(document)}, '
        f"{html.escape(document['measured_at'])}</p>"
        + "".join(
            f'<div class="verdict{" good" if is_good else ""}">{html.escape(line)}</div>'
            for line, is_good in _verdicts(document)
        )
    )


def _verdicts(document: Document) -> Iterator[tuple[str, bool]]:
    """Each line of the verdict, and whether it is good news."""
    if document["status"] != "complete":
        yield f"This run is not complete: {document['status']}", False
    if "chaos" in document:
        line = chaos_verdict(document)
        yield line, line.startswith("RECOVERED")
    if "sweep" in document:
        line = sentence(document)
        yield line, "no rate" not in line
        return
    for each in document["rounds"]:
        line = verdict(each)
        yield line, line.startswith("SLO HELD")


def _span(document: Document) -> str:
    spans_s = [each["throughput"]["span_s"] for each in document["rounds"] if each["throughput"]]
    return f"{len(spans_s)} round{'s' if len(spans_s) != 1 else ''}, {sum(spans_s):.0f} s in all"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], words: Container[int] = ()) -> str:
    """Cells are HTML already; columns of ``words`` begin at the left, those of numbers end at the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="words"' if place in words else "" for place in range(len(cells)))
        return (
            "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"
        )

    return f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>"


def _slo_table(document: Document, slo: Slo) -> str:
    rows = []
    for each in document["rounds"]:
        goodput = each["goodput"]
        if not goodput or goodput["share_in_slo"] is None:
            continue
        rows.append([
            f"{each['rate_per_s']:.4g}/s" if each["rate_per_s"] is not None else f"round {each['round']}",
            f"{goodput['share_in_slo']:.2%} <small>{share_interval(goodput)}</small>",
            f"{goodput['requests_per_s']:.3g}",
            f"{goodput['output_tokens_per_s']:.0f}", str(each["requests"]["num_ok"]),
            str(each["requests"]["num_error"]),
            "held" if goodput["is_slo_held"] else "missed",
        ])  # fmt: skip
    header = ("load", "in SLO", "goodput requests/s", "goodput tokens/s", "answered", "failed", "")
    return f'<p class="note">SLO: {html.escape(str(slo))}</p>' + _table(header, sorted(rows, key=_by_rate))


def _faults(document: Document) -> str:
    """What each fault was, and what it did."""
    marks = [mark for each in document["rounds"] for mark in each.get("marks", ()) if "planned_s" in mark]
    if not marks:
        return ""
    effects = _table(MARK_HEADER, ([html.escape(cell) for cell in row] for row in mark_rows(marks)), {1})
    deeds = _table(("fault", "planned s", "begun s", "done s", "process", "what"), (
        [html.escape(mark["name"]), f"{mark['planned_s']:g}", *(_plain(mark[key]) for key in ("at_s", "done_s", "pid")),
         html.escape(mark["error"] or "; ".join(filter(None, (mark["what"], mark.get("not_recovered_because")))))]
        for mark in marks
    ), {5})  # fmt: skip
    return (
        f"<h2>Faults</h2>{effects}{deeds}"
        '<p class="note">Before: from the start, or from when the fault before was over. During: requests under way '
        "at the fault, and those intended until it was over. A fault is over when misses of the SLO, counted against "
        "the share that missed it before, are at their highest: from then on no more is missed than before. "
        "TTFT is the median, but for the worst.</p>"
    )


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _by_rate(row: Sequence[str]) -> float:
    return float(row[0].removesuffix("/s")) if row[0].endswith("/s") else 0.0


def _percentiles(each: Mapping[str, Any]) -> str:
    def cell(entry: Mapping[str, Any]) -> str:
        if entry["value"] is None:
            return "–"
        if entry.get("is_at_most"):
            return f"≤ {entry['value']:.1f}"
        bounds = "" if entry["ci95"] is None else f"<br><small>{entry['ci95'][0]:.1f} to {entry['ci95'][1]:.1f}</small>"
        return f"{entry['value']:.1f}{bounds}"

    def cells(label: str, row: Mapping[str, Any], most: str) -> list[str]:
        return [html.escape(label), str(row["n"]), *(cell(row[name]) for name in PERCENTILES), most]

    rows = [
        cells(label.strip() if not label.startswith(" ") else f"– {label.strip()}", row, f"{row['max']:.1f}")
        for key, label in LABELS.items() if (row := each["latency"][key])["n"]
    ]  # fmt: skip
    rows += [
        cells(server_label(label, row), row, "")
        for key, label in SERVER_LABELS.items()
        if (row := each["server"].get(key))
    ]
    rate = f" at {each['rate_per_s']:.4g} requests/s" if each["rate_per_s"] is not None else ""
    table = _table(("ms", "n", *PERCENTILES, "max"), rows)
    is_open = " open" if each["round"] == 0 else ""
    return f"<details{is_open}><summary>Round {each['round']}{rate}</summary>{table}</details>"


def _server_tables(document: Document) -> str:
    """The last round's figures; plain values only."""
    if not document["rounds"]:
        return ""
    server = document["rounds"][-1]["server"]
    plain = [[html.escape(name), f"{value:g}"] for name, value in server.items() if isinstance(value, int | float)]
    return _table(("server", ""), plain) if len(plain) > 2 else ""


def _leaks(document: Document) -> str:
    rows = list(growth_rows(document.get("leaks", {})))
    return "<h2>Growth</h2>" + _table(GROWTH_HEADER, rows, {1}) if rows else ""


def _cost(document: Document) -> str:
    def usd(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    rows = [
        [html.escape(entry["pool"]), str(each["round"]), usd(entry["usd_per_hour"]), f"{entry['num_tokens']:,}",
         usd(entry["usd_per_million_tokens"]), usd(entry["usd_per_million_tokens_at_slo"]), html.escape(entry["basis"])]
        for each in document["rounds"] for entry in each.get("cost", ())
    ]  # fmt: skip
    header = ("pool", "round", "USD/h", "tokens", "USD per million tokens", "at the SLO", "hours paid")
    return "<h2>Cost</h2>" + _table(header, rows, {6}) if rows else ""


def _errors(document: Document) -> str:
    rows = [
        [html.escape(str(entry["status"] or "none")), str(entry["number"]),
         f"{entry['first_s']:.1f} to {entry['last_s']:.1f} s",
         html.escape(entry["error"]), html.escape(", ".join(entry["request_ids"]))]
        for each in document["rounds"] for entry in each["errors"]
    ]  # fmt: skip
    return "<h2>Errors</h2>" + (
        _table(("status", "number", "when", "what", "request ids"), rows, {3, 4}) if rows else "<p>None.</p>"
    )


def _making(document: Document) -> str:
    """Everything that is needed to do it again."""
    generators = [
        [str(each["round"]), *(str(each["generator"][name]) for name in (
            "num_workers", "dispatch_delay_p50_ms", "dispatch_delay_p99_ms", "loop_lag_p99_ms", "cpu_share"))]
        for each in document["rounds"]
    ]  # fmt: skip
    header = ("round", "workers", "dispatch delay p50 ms", "p99 ms", "loop lag p99 ms",
              "busiest worker's CPU (share of a core)")  # fmt: skip
    kept = {name: document[name] for name in document if name not in ("rounds", "discarded_rounds", "sweep", "leaks")}
    files = [name for each in document["rounds"] for name in each["files"]]
    links = ", ".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>' for name in ("run.json", *files))
    return (
        f"<h2>The load generator</h2>{_table(header, generators)}<h2>How it was made</h2>"
        f"<pre>{html.escape(json.dumps(kept, indent=1))}</pre><p class='note'>Raw files: {links}</p>"
    )
