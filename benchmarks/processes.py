"""CPU time and memory of other processes, from /proc."""

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """User and system time of all of a process's threads so far, in seconds (resolution 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def pss_bytes(pid: int) -> int:
    """Memory of a process, each page that it shares counted in proportion."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def named(needle: str) -> list[int]:
    """Processes whose command line contains ``needle``."""
    return [pid for pid, command in _commands() if needle in command]


def children(parents: Iterable[int]) -> list[int]:
    """All descendants of ``parents``."""
    parent_of = {}
    for pid, _ in _commands():
        try:
            parent_of[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: list[int] = []
    level = set(parents)
    while level:
        level = {pid for pid, parent in parent_of.items() if parent in level}
        found.extend(sorted(level))
    return found


def _commands() -> list[tuple[int, str]]:
    commands = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            commands.append((int(entry.name), command))
    return commands
