"""``ballast tune …``: hands the rest of the line to what measures, which has options of its own."""

import importlib
from argparse import Namespace

_MODULE = "benchmarks.tune.command"
"""Loaded by name and only then: nothing that serves requests may load what measures it (pyproject.toml)."""


def run(arguments: Namespace) -> int:
    """Its exit code."""
    return int(importlib.import_module(_MODULE).main(arguments.rest))
