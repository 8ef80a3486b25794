"""What this machine has: cores, memory, GPUs, disk, and which ports are taken. Linux; limits of a container count."""

import csv
import math
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.cgroup import own_cgroup

MIB = 2**20
_NVIDIA_SMI_TIMEOUT_S = 20.0

Endpoint = tuple[str, int]

_FAST_BFLOAT16 = frozenset({"avx512f", "avx512_bf16", "amx_bf16", "bf16"})
"""Of x86, and the last of ARM."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver reports it."""

    name: str
    memory_bytes: int
    free_memory_bytes: int
    driver_version: str


@dataclass(frozen=True)
class Machine:
    """What there is to run on.

    ``num_cpus`` is a float because a container's quota may be a fraction. ``gpu_problem`` is set when a GPU is there
    and its driver does not answer. ``unusable_endpoints`` says why an asked-for ``(host, port)`` cannot be listened at.
    """

    num_cpus: float
    total_memory_bytes: int
    available_memory_bytes: int
    free_disk_bytes: int
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str | None = None
    unusable_endpoints: Mapping[Endpoint, str] = field(default_factory=dict)
    has_fast_bfloat16: bool = True
    """Whether its CPU multiplies matrices of that format in hardware, or has registers that make up for it."""


def observe_machine(disk: Path, endpoints: Iterable[Endpoint] = ()) -> Machine:
    """Look at this machine: free space of the disk that holds ``disk``, and whether each of ``endpoints`` is free."""
    cgroup = own_cgroup()
    quota = cgroup.cpu_quota()
    total_bytes, available_bytes = _memory()
    gpus, gpu_problem = _gpus()
    return Machine(
        num_cpus=min(float(len(os.sched_getaffinity(0))), quota or math.inf),
        total_memory_bytes=min([total_bytes, *(memory.limit_bytes for memory in cgroup.memory())]),
        available_memory_bytes=min([available_bytes, *(memory.free_bytes for memory in cgroup.memory())]),
        free_disk_bytes=_free_disk_bytes(disk),
        gpus=gpus,
        gpu_problem=gpu_problem,
        unusable_endpoints={endpoint: why for endpoint in endpoints if (why := listen_problem(*endpoint))},
        has_fast_bfloat16=has_fast_bfloat16(Path("/proc/cpuinfo").read_text()),
    )


def has_fast_bfloat16(cpuinfo: str) -> bool:
    """What /proc/cpuinfo says of it. A CPU with AVX2 alone took eight times as long as in float32 (2,048 x 160 by
    160 x 480, torch 2.13.0, one thread of an AMD EPYC).
    """
    names = (line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith(("flags", "Features")))
    return not _FAST_BFLOAT16.isdisjoint(next(names, ()))


def listen_problem(host: str, port: int) -> str | None:
    """Why no server can listen at ``host``:``port`` now, in the kernel's words; None if one can.

    Connections that linger after a close do not count.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _memory() -> tuple[int, int]:
    """Total and available bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {fields[0]: int(fields[1]) for fields in lines if len(fields) > 1}
    return kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024


def _free_disk_bytes(path: Path) -> int:
    """Free bytes where ``path`` is, or where it would be made."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs, and what is wrong with them if something is. No GPU at all is nothing wrong."""
    has_hardware = any(Path("/proc/driver/nvidia/gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))
    if shutil.which("nvidia-smi") is None:
        return (), "an NVIDIA GPU is here, but its driver is not (no nvidia-smi)" if has_hardware else None
    query = "--query-gpu=name,memory.total,memory.free,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (), f"nvidia-smi did not answer within {_NVIDIA_SMI_TIMEOUT_S:g} s"
    except OSError as error:
        return (), f"nvidia-smi cannot be run: {error.strerror}"
    if answer.returncode != 0:
        lines = (answer.stdout + answer.stderr).strip().splitlines() or [f"exit code {answer.returncode}"]
        return (), None if "No devices were found" in lines[0] else f"nvidia-smi: {lines[0]}"
    return parse_nvidia_smi(answer.stdout)


def parse_nvidia_smi(text: str) -> tuple[tuple[Gpu, ...], str | None]:
    """nvidia-smi's CSV of name, total MiB, free MiB and driver version, one GPU a line."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if "No devices were found" in text:
        return (), None
    if not all(len(row) == 4 and row[1].isdigit() and row[2].isdigit() for row in rows):
        return (), f"nvidia-smi said something unexpected: {text.strip().splitlines()[0]}"
    return tuple(Gpu(name, int(total) * MIB, int(free) * MIB, driver) for name, total, free, driver in rows), None
