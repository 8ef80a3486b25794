"""JSON logs: one object per line, one line per request, never a prompt, an answer or a key."""

import logging
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: Longest value of any field; a client controls some of them.
MAX_FIELD_CHARS = 512


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object: ``time``, ``level``, ``logger``, ``event`` and whatever ``extra`` carried.

    JSON escapes control characters, so nothing a client sends can forge a line or reach a terminal as an escape sequence.
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
    """Append the ``ballast`` loggers' lines to ``path``, which several processes share; reopens it after a rotation. Idempotent."""
    root = logging.getLogger("ballast")
    root.setLevel(level.upper())
    root.propagate = False
    if not root.handlers:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = WatchedFileHandler(path)
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)
