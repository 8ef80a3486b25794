"""``ballast bench report RUN``: the page of a run that was measured before."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.mistake import BenchError
from benchmarks.runs.document import read


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0. Raises BenchError."""
    parser = argparse.ArgumentParser(prog="ballast bench report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or its run.json")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    found = read(options.run)
    try:
        from benchmarks.report.page import write_report
    except ImportError as error:
        raise BenchError(
            f"charts need matplotlib: install the pinned set of requirements/bench.txt ({error})"
        ) from error
    print(write_report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
