"""How far the start of a replica has got, told through a small file: `ballast up` shows it, and the split of a start is
taken from it.

One line per step: seconds since 1970, a tab, the step. The replica names the file in its environment, so that the
engine's processes, which it starts, add to the same one. Where no file is named (tests, benchmarks), nothing is
written.
"""

import os
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

VARIABLE = "BALLAST_PROGRESS_FILE"
FOLDER = "progress"

PROCESS, IMPORTS, ENGINE, WEIGHTS, COMPILE, WARM_UP, API, READY = (
    "process", "imports", "engine", "weights", "compile", "warm-up", "api", "ready",
)  # fmt: skip
WORDS = {
    PROCESS: "starting its process",
    IMPORTS: "importing the engine",
    ENGINE: "starting the engine's process",
    WEIGHTS: "loading weights",
    COMPILE: "compiling the model",
    WARM_UP: "allocating the KV cache and warming up",
    API: "starting the API",
}
"""What each step is called where people read it."""


def report_to(runtime_dir: Path, deployment: str, replica: str) -> Path:
    """Name the file of one replica, for this process and those it will start."""
    folder = runtime_dir / FOLDER / deployment
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / replica
    os.environ[VARIABLE] = str(path)
    return path


def write_step(step: str, at_s: float | None = None) -> None:
    """Say what begins, now or at ``at_s``."""
    if path := os.environ.get(VARIABLE):
        with open(path, "a") as file:
            file.write(f"{time.time() if at_s is None else at_s:.3f}\t{step}\n")


def read_steps(path: Path) -> Iterator[tuple[float, str]]:
    """When each step began, and its name, in order."""
    for line in path.read_text().splitlines():
        at_s, _, step = line.partition("\t")
        yield float(at_s), step


def split(steps: Iterable[tuple[float, str]]) -> dict[str, float]:
    """Seconds that each step took, from one's beginning to the next one's; the last of them ends nothing."""
    return {step: round(next_s - at_s, 3) for (at_s, step), (next_s, _) in pairwise(steps)}


def process_began_s() -> float:
    """When this process was started, in seconds since 1970."""
    began_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
