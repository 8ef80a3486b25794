"""``ballast tune …``: hands the rest of the line to what measures, which has options of its own."""

import importlib
import signal
from argparse import Namespace

_MODULE = "benchmarks.tune.command"
"""Loaded by name and only then: nothing that serves requests may load what measures it (pyproject.toml)."""


def run(arguments: Namespace) -> int:
    """Its exit code. SIGINT is heard also by a shell's background job, which is told to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return int(importlib.import_module(_MODULE).main(arguments.rest))
