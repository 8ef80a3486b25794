"""What engines died of, known to every gateway of a server: a client that one has refused asks the next.

Gateways share a folder. A death is a line of a file in it, and whoever is about to decide first reads what is new
there, which is one look at the file's length as long as no engine dies.
"""

import logging
import os
import time
from pathlib import Path

from serving.router.failover import Quarantine

logger = logging.getLogger("ballast.gateway")

FILE_NAME = "deaths"
_SERVED = "-"
"""In the place of a replica's name."""


class SharedQuarantine:
    """`Quarantine` over one file. Its constructor creates the file, or reads what it holds."""

    def __init__(self, quarantine: Quarantine, path: Path) -> None:
        self._quarantine = quarantine
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._num_read = 0
        self._catch_up()

    @property
    def is_empty(self) -> bool:
        self._catch_up()
        self._quarantine.forget(time.monotonic())
        return self._quarantine.is_empty

    def holds(self, fingerprint: bytes, now_s: float) -> bool:
        self._catch_up()
        return self._quarantine.holds(fingerprint, now_s)

    def on_death(self, fingerprint: bytes, replica: str) -> None:
        self._tell(fingerprint, replica)

    def on_success(self, fingerprint: bytes, now_s: float) -> None:
        self._catch_up()
        if self._quarantine.num_deaths(fingerprint, now_s):
            self._tell(fingerprint, _SERVED)

    def _tell(self, fingerprint: bytes, replica: str) -> None:
        """One write of a short line at the end of a file: nobody's comes between. Its time is that of the machine,
        which all gateways share. On a full disk this gateway alone knows."""
        now_s = time.monotonic()
        try:
            os.write(self._file, f"{fingerprint.hex()} {now_s:.3f} {replica}\n".encode())
        except OSError as error:
            logger.error("other gateways were not told of a request that engines died of: %s", error)
            self._learn(fingerprint, now_s, replica)
        else:
            self._catch_up()

    def _catch_up(self) -> None:
        num_bytes = os.fstat(self._file).st_size - self._num_read
        if not num_bytes:
            return
        lines = os.pread(self._file, num_bytes, self._num_read)
        self._num_read += len(lines)
        for line in lines.decode().splitlines():
            fingerprint, at_s, replica = line.split(" ", 2)
            self._learn(bytes.fromhex(fingerprint), float(at_s), replica)

    def _learn(self, fingerprint: bytes, at_s: float, replica: str) -> None:
        if replica == _SERVED:
            self._quarantine.on_success(fingerprint)
        else:
            self._quarantine.on_death(fingerprint, replica, at_s)
