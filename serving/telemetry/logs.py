"""JSON logs on stderr: one object per line, one line per request, never a prompt, an answer or a key."""

import logging
import sys
import time

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


def configure_logs(level: str = "info") -> None:
    """Send the ``ballast`` loggers to stderr as JSON. Idempotent."""
    root = logging.getLogger("ballast")
    root.setLevel(level.upper())
    root.propagate = False
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)
