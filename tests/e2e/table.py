"""The rows of the table of faults that this run has filled; the terminal's summary shows them."""

ROWS: list[str] = []
