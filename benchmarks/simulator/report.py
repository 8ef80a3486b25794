"""A study as one self-contained HTML page; its plots lie beside it as PNG too."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.simulator.plots import plot_pareto, plot_timeline
from benchmarks.simulator.study import Study
from benchmarks.simulator.table import render

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
pre { overflow-x: auto; background: #f5f5f2; padding: 0.8rem; font-size: 12px }
img { max-width: 100% }
"""

_PREAMBLE = """
All figures are simulated: an event-driven model of continuous batching with chunked prefill, on a fleet whose
coefficients are assumed. Ours has one setting for all traces; each peer has, for each trace, the setting that hindsight
chose. Intervals are 95 % over seeds (cold starts, router draws). The DP oracle knows the whole trace.
"""


def write_report(folder: Path, head: Mapping[str, object], studies: Sequence[Study]) -> Path:
    """Write the page and the plots into ``folder``; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"<h1>Autoscaling, simulated</h1><p>{_PREAMBLE}</p>"]
    for found in studies:
        name = html.escape(found.trace.name)
        parts.append(f"<h2>{name}</h2><pre>{html.escape(render(found).strip())}</pre>")
        for kind, plot in (("pareto", plot_pareto), ("timeline", plot_timeline)):
            path = folder / f"{_file_name(found)}-{kind}.png"
            plot(found, path)
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<img alt="{kind} of {name}" src="data:image/png;base64,{data}">')
    parts.append(f"<h2>How it was made</h2><pre>{html.escape(json.dumps(head, indent=1))}</pre>")
    page = folder / "index.html"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Autoscaling, simulated</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    return page


def _file_name(found: Study) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in found.trace.name)
