"""``ballast bench SUBJECT …``: hands the rest of the line to the benchmark, which has options of its own."""

from argparse import Namespace


def run(arguments: Namespace) -> int:
    """The benchmark's exit code."""
    # Here and not above: nothing that serves requests may load what measures it (pyproject.toml, importlinter).
    if arguments.subject == "calibrate":
        from benchmarks.calibrate import main as calibrate

        return calibrate(arguments.rest)
    assert arguments.subject == "autoscale", "the command line knows no other"
    from benchmarks.simulator.__main__ import main as autoscale

    return autoscale(arguments.rest)
