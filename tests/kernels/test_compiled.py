"""Compiling, caching and spreading the CPU kernels."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kernels
from kernels.compiled import over_rows


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_every_row_is_worked_on_once_and_small_batches_stay_on_the_callers_thread() -> None:
    shares: list[tuple[int, int, bool]] = []

    def work(first: int, last: int) -> None:
        shares.append((first, last, threading.current_thread() is threading.main_thread()))

    over_rows(7, 2**20, work)
    assert sorted(shares) == [(0, 3, True), (3, 7, False)]
    shares.clear()
    over_rows(7, 1000, work)
    over_rows(0, 1000, work)
    assert shares == [(0, 7, True), (0, 0, True)]


@pytest.mark.usefixtures("two_threads")
def test_an_error_on_another_thread_reaches_the_caller() -> None:
    def work(first: int, last: int) -> None:
        if first:
            raise ValueError("share")

    with pytest.raises(ValueError, match="share"):
        over_rows(4, 2**20, work)


_LOAD = """
import torch
from kernels.compiled import forbid_compiling
from kernels.grammar_mask.cpu import apply, mask_rows
apply(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int32))
forbid_compiling()
print(sum(mask_rows.stats.cache_hits.values()), sum(mask_rows.stats.cache_misses.values()))
try:
    mask_rows(0.5, 1, 2)
except TypeError:
    print("refused")
"""


def test_a_kernel_is_compiled_once_and_again_only_when_a_source_of_any_of_them_changes(tmp_path: Path) -> None:
    """And not at all where that is forbidden."""
    shutil.copytree(Path(kernels.__file__).parent, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))

    def load() -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-c", _LOAD]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    assert load() == ["0", "1", "refused"]
    assert load() == ["1", "0", "refused"]
    with (tmp_path / "kernels/lanes.py").open("a") as lanes:
        lanes.write("# another\n")
    assert load() == ["0", "1", "refused"]
