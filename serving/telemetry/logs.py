"""JSON logs: one object per line, one line per request, never a prompt, an answer or a key."""

import asyncio
import contextlib
import logging
import os
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import BinaryIO

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: Longest value of any field; a client controls some of them.
MAX_FIELD_CHARS = 512


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object: ``time``, ``level``, ``logger``, ``event`` and whatever ``extra`` carried.

    JSON escapes control characters, so nothing a client sends can forge a line or reach a terminal as an escape
    sequence.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _bounded(record.getMessage()),
        }
        entry.update({name: _bounded(value) for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


def _bounded(value: object) -> object:
    return value[:MAX_FIELD_CHARS] if isinstance(value, str) else value


def configure_logs(level: str, path: Path) -> None:
    """Append the ``ballast`` loggers' lines to ``path``, which several processes share; reopens it after a rotation.
    Idempotent.
    """
    root = logging.getLogger("ballast")
    root.setLevel(level.upper())
    root.propagate = False
    if not root.handlers:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = WatchedFileHandler(path)
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)


class RequestLog:
    """The one line per request, written without the logging module, which costs more than the rest of a short request.

    Lines of one event-loop turn leave in one write. The file is reopened when it was rotated, looked at once per
    second.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._file: BinaryIO | None = None
        self._checked_s = 0.0

    def write(self, entry: dict[str, object]) -> None:
        """``entry`` must hold plain JSON values; strings a client chose must be bounded already."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        now_s = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03d}Z"
        self._lines.append(orjson.dumps({"time": stamp, "level": "info", "logger": "ballast.request"} | entry))

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        try:
            file = self._current_file()
            file.write(b"\n".join(lines) + b"\n")
            file.flush()
        except OSError as error:  # a full disk must not stop requests
            logging.getLogger("ballast.gateway").error("%d request lines were not written: %s", len(lines), error)

    def _current_file(self) -> BinaryIO:
        now_s = time.monotonic()
        if self._file is not None and now_s - self._checked_s > 1.0:
            self._checked_s = now_s
            if not self._path.exists() or self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
                old, self._file = self._file, None
                with contextlib.suppress(OSError):  # a full disk: what it held is lost, the next file may do
                    old.close()
        if self._file is None:
            self._file = self._path.open("ab")
        return self._file
