"""The console that tables are printed on."""

import sys

from rich.console import Console

WIDE_COLUMNS = 240


def console() -> Console:
    """As wide as the terminal; through a pipe wide enough that nothing is cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE_COLUMNS)
