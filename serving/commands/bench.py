"""``ballast bench SUBJECT …``: hands the rest of the line to the benchmark, which has options of its own."""

import importlib
import signal
from argparse import Namespace

_MODULES = {
    "autoscale": "benchmarks.simulator.__main__",
    "calibrate": "benchmarks.calibrate",
    "chaos": "benchmarks.runs.chaos",
    "compare": "benchmarks.runs.compare",
    "kernels": "benchmarks.kernels.__main__",
    "overhead": "benchmarks.overhead",
    "peers": "benchmarks.peers.command",
    "report": "benchmarks.report.command",
    "serve": "benchmarks.runs.serve",
    "soak": "benchmarks.runs.soak",
    "sweep": "benchmarks.runs.sweep",
}
"""Loaded by name and only then: nothing that serves requests may load what measures it (pyproject.toml)."""


def run(arguments: Namespace) -> int:
    """The benchmark's exit code. SIGTERM is heard as Ctrl-C is, and SIGINT also by a shell's background job, which is
    told to ignore it: what was measured is kept, what was stopped goes on.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    return int(importlib.import_module(_MODULES[arguments.subject]).main(arguments.rest))
