"""Request lines, also after a disk was full."""

import asyncio
import errno
from pathlib import Path
from typing import BinaryIO

import pytest

from serving.telemetry.logs import RequestLog


class FullDisk:
    """A log file that can be written no more, not even closed."""

    def __init__(self, file: BinaryIO) -> None:
        self.fileno = file.fileno
        self._close = file.close

    def close(self) -> None:
        self._close()
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_lines_are_written_again_when_a_full_disk_was_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ballast.jsonl"
    log = RequestLog(path)
    log.write({"request_id": "before"})
    await asyncio.sleep(0)
    assert log._file is not None
    monkeypatch.setattr(log, "_file", FullDisk(log._file))
    path.rename(tmp_path / "moved away")
    log.write({"request_id": "after"})
    await asyncio.sleep(0)
    assert b"after" in path.read_bytes()
    assert log._file is not None
    log._file.close()
