"""How far the start of a replica has got, told through a small file: `ballast up` shows it.

One line per step: seconds since 1970, a tab, the step. The replica names the file in its environment, so that the
engine's processes, which it starts, add to the same one. Where no file is named (tests, benchmarks), nothing is
written.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "BALLAST_PROGRESS_FILE"
FOLDER = "progress"


def report_to(runtime_dir: Path, deployment: str, replica: str) -> None:
    """Name the file of one replica, for this process and those it will start."""
    folder = runtime_dir / FOLDER / deployment
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ[VARIABLE] = str(folder / replica)


def write_step(step: str) -> None:
    """Say what begins now."""
    if path := os.environ.get(VARIABLE):
        with open(path, "a") as file:
            file.write(f"{time.time():.3f}\t{step}\n")


def read_steps(path: Path) -> Iterator[tuple[float, str]]:
    """When each step began, and its name, in order."""
    for line in path.read_text().splitlines():
        at_s, _, step = line.partition("\t")
        yield float(at_s), step
