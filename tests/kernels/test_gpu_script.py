"""The script that is carried to a GPU machine runs to its end here, in the interpreter; on a GPU, its checks do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernels.gpu import MODES

ROOT = Path(__file__).parent.parent.parent
SCRIPT = [sys.executable, "benchmarks/kernels/gpu.py"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """From the repository's root, with nothing in the environment that finds our packages."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    return subprocess.run([*SCRIPT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_dry_run_checks_and_times_every_mode(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    done = run("--dry-run", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["failed_checks"] == []
    assert [row["mode"] for row in report["results"]] == list(MODES)
    assert {"ballast", "torch"} == set(report["results"][0]["us"])


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_every_kernel_holds_to_the_oracle_on_the_device() -> None:
    done = run("--check-only")
    assert done.returncode == 0, done.stdout + done.stderr
