"""``ballast bench SUBJECT …``: hands the rest of the line to the benchmark, which has options of its own."""

from argparse import Namespace


def run(arguments: Namespace) -> int:
    """The benchmark's exit code."""
    assert arguments.subject == "autoscale", "the command line knows no other"
    # Here and not above: nothing that serves requests may load what measures it (pyproject.toml, importlinter).
    from benchmarks.simulator.__main__ import main

    return main(arguments.rest)
