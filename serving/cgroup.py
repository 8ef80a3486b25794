"""The CPU and memory limits of this process's control groups, in both versions of the kernel's interface."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 2**60
"""Version 1 writes "no limit" as a number near 2**63."""


@dataclass(frozen=True)
class MemoryLimit:
    """One group's memory. ``used_bytes`` leaves out file pages that the kernel would drop first."""

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class Cgroup:
    """``root`` is where the hierarchies are mounted, ``membership`` the text of ``/proc/self/cgroup``."""

    root: Path
    membership: str

    def cpu_quota(self) -> float | None:
        """Cores that the tightest group allows; None when none limits them."""
        quotas = [*self._quotas_v2(), *self._quotas_v1()]
        return min(quotas) if quotas else None

    def memory(self) -> list[MemoryLimit]:
        """Every group around this process that limits memory."""
        return [*self._memory_v2(), *self._memory_v1()]

    def _quotas_v2(self) -> Iterator[float]:
        for group in self._groups(""):
            quota, _, period = _read(group / "cpu.max").partition(" ")
            if quota.isdigit() and period.isdigit():
                yield int(quota) / int(period)

    def _quotas_v1(self) -> Iterator[float]:
        for group in self._groups("cpu"):
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit():  # no limit is written -1
                yield int(quota) / int(period)

    def _memory_v2(self) -> Iterator[MemoryLimit]:
        for group in self._groups(""):
            limit, used = _read(group / "memory.max"), _read(group / "memory.current")
            if limit.isdigit() and used.isdigit():
                yield MemoryLimit(int(limit), int(used) - _droppable_bytes(group, "inactive_file"))

    def _memory_v1(self) -> Iterator[MemoryLimit]:
        for group in self._groups("memory"):
            limit, used = _read(group / "memory.limit_in_bytes"), _read(group / "memory.usage_in_bytes")
            if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED_BYTES:
                yield MemoryLimit(int(limit), int(used) - _droppable_bytes(group, "total_inactive_file"))

    def _groups(self, controller: str) -> Iterator[Path]:
        """The folders of this process's group and of all around it; ``controller`` is "" for version 2.

        Inside a container the path may be the host's and not exist here; the mount's root then is our own group.
        """
        mount = self.root / controller
        for line in self.membership.splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                group = Path(path.lstrip("/"))
                yield from (mount / folder for folder in (group, *group.parents))


def own_cgroup() -> Cgroup:
    """The groups of this process."""
    return Cgroup(Path("/sys/fs/cgroup"), _read(Path("/proc/self/cgroup")))


def _droppable_bytes(group: Path, field: str) -> int:
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == field:
            return int(value)
    return 0


def _read(path: Path) -> str:
    """The file's text, or "" where this kernel or container has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
