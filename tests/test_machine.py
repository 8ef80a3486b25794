"""What this machine has."""

import os
import socket
from pathlib import Path

import pytest

from serving.cgroup import Cgroup, MemoryLimit
from serving.machine import MIB, Gpu, has_fast_bfloat16, listen_problem, observe_machine, parse_nvidia_smi


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_this_machine_has_cores_memory_and_disk(tmp_path: Path) -> None:
    machine = observe_machine(tmp_path / "not" / "yet" / "made")
    assert 0 < machine.num_cpus <= (os.cpu_count() or 1)
    assert 0 < machine.available_memory_bytes <= machine.total_memory_bytes
    assert machine.free_disk_bytes > 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu sse2 avx avx2 fma", False),
        ("flags\t\t: fpu avx2 avx512f avx512dq", True),
        ("flags\t\t: fpu avx2 amx_bf16", True),
        ("Features\t: fp asimd sve bf16", True),
        ("Features\t: fp asimd", False),
        ("model name\t: a CPU with avx512f in its name", False),
    ],
)
def test_a_cpu_is_fast_in_bfloat16_by_its_instructions(line: str, expected: bool) -> None:
    assert has_fast_bfloat16(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n") == expected


def test_a_port_that_is_taken_is_reported_with_the_kernels_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = server.getsockname()
        assert observe_machine(tmp_path, [endpoint]).unusable_endpoints == {endpoint: "Address already in use"}
    assert observe_machine(tmp_path, [endpoint]).unusable_endpoints == {}


def test_an_address_that_is_not_ours_is_reported() -> None:
    assert listen_problem("192.0.2.1", 8000) == "Cannot assign requested address"


def test_an_address_that_no_socket_takes_is_reported() -> None:
    assert listen_problem("no such host", 8000)


@pytest.mark.parametrize(
    ("script", "gpus", "problem"),
    [
        ("echo 'NVIDIA H200, 143771, 143000, 580.1'", (Gpu("NVIDIA H200", 143771 * MIB, 143000 * MIB, "580.1"),), None),
        ("echo 'No devices were found'; exit 6", (), None),
        ("echo 'No devices were found'", (), None),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", (),
         "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"),
        ("exit 9", (), "nvidia-smi: exit code 9"),
        ("echo 'H200, [N/A], [N/A], 580'", (), "nvidia-smi said something unexpected: H200, [N/A], [N/A], 580"),
    ],
)  # fmt: skip
def test_a_gpu_whose_driver_fails_is_told_apart_from_no_gpu(
    script: str, gpus: tuple[Gpu, ...], problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    machine = observe_machine(tmp_path)
    assert (machine.gpus, machine.gpu_problem) == (gpus, problem)


def test_an_nvidia_smi_that_cannot_run_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert observe_machine(tmp_path).gpu_problem == "nvidia-smi cannot be run: Exec format error"


def test_gpus_of_any_name_are_read_line_by_line() -> None:
    gpus, problem = parse_nvidia_smi('"A, B", 2, 1, 5\nC, 4, 3, 5\n\n')
    assert [gpu.name for gpu in gpus] == ["A, B", "C"]
    assert problem is None


# ------------------------------------------------------------------------------------------------ control groups


def test_version_2_limits_of_every_group_around_the_process_count(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", cpu__max="max 100000", memory__max="1000", memory__current="700")
    write(tmp_path / "a" / "b", memory__stat="anon 400\ninactive_file 300")
    write(tmp_path / "a", cpu__max="150000 100000", memory__max="5000", memory__current="900", memory__stat="anon 1")
    write(tmp_path, memory__max="max", memory__current="900")
    cgroup = Cgroup(tmp_path, "0::/a/b\n")
    assert cgroup.cpu_quota() == 1.5
    assert cgroup.memory() == [MemoryLimit(1000, used_bytes=400), MemoryLimit(5000, used_bytes=900)]


def test_version_1_limits_count_and_its_huge_number_is_none(tmp_path: Path) -> None:
    write(tmp_path / "cpu" / "x", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    write(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(tmp_path / "memory" / "x", memory__limit_in_bytes="2000", memory__usage_in_bytes="500")
    write(tmp_path / "memory" / "x", memory__stat="total_inactive_file 100")
    write(tmp_path / "memory", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes="9")
    cgroup = Cgroup(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/x\n")
    assert cgroup.cpu_quota() == 0.5
    assert cgroup.memory() == [MemoryLimit(2000, used_bytes=400)]


def test_in_a_container_the_mounts_root_is_the_own_group(tmp_path: Path) -> None:
    write(tmp_path, cpu__max="200000 100000")
    assert Cgroup(tmp_path, "0::/host/path/unseen/here\n").cpu_quota() == 2


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert Cgroup(tmp_path, "").cpu_quota() is None
    assert Cgroup(tmp_path, "").memory() == []


def test_a_group_over_its_limit_has_nothing_free() -> None:
    assert MemoryLimit(limit_bytes=10, used_bytes=12).free_bytes == 0
