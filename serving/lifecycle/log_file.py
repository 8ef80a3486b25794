"""The server's JSON log as `ballast up` looks after it: new lines are read, and the file is rotated by size."""

from pathlib import Path
from typing import TextIO

MAX_LOG_BYTES = 100 * 10**6
MAX_OLD_LOGS = 5


class LogFile:
    """Follows a log that other processes append to. They reopen the path when its file has been moved away."""

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES, num_old: int = MAX_OLD_LOGS) -> None:
        """``num_old`` rotated files are kept: ``ballast.jsonl.1`` is the newest of them."""
        self._path = path
        self._max_bytes = max_bytes
        self._num_old = num_old
        self._partial = ""
        self._file = self._open()
        if self._file is not None:
            self._file.seek(0, 2)  # what a former server wrote is not news

    def new_lines(self) -> list[str]:
        """Whole lines that were written since the last call, those of a file just rotated away first."""
        text = self._read()
        if not self._is_current():
            text += self._read()  # a writer may have added to the old file before it noticed
            self.close()
            self._file = self._open()
            text += self._read()
        *lines, self._partial = (self._partial + text).split("\n")
        return lines

    def rotate(self) -> None:
        """Move the file aside if it has grown too large and has been read so far; the oldest one goes."""
        if self._file is None or not self._path.exists() or not self._is_current():
            return
        if self._path.stat().st_size < self._max_bytes:
            return
        for number in range(self._num_old - 1, 0, -1):
            if self._old(number).exists():
                self._old(number).replace(self._old(number + 1))
        self._path.replace(self._old(1))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> str:
        return self._file.read() if self._file is not None else ""

    def _open(self) -> TextIO | None:
        return self._path.open(errors="replace") if self._path.exists() else None

    def _is_current(self) -> bool:
        """False when the path holds another file than ours; a path without a file may still get one from the
        writers.
        """
        if not self._path.exists():
            return True
        return self._file is not None and self._path.samefile(f"/proc/self/fd/{self._file.fileno()}")

    def _old(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
