"""How a running server is told of another config: a Unix socket of the process that holds Ray, in its private folder.

    ballast apply ── Apply, one JSON line ──▸ holder
                  ◂── Report, one JSON line each, until the socket ends ──

The runtime folder is private to the user who started the server (0700), and so is what it may be told. What is in
force lies beside the socket, for `ballast apply` and `ballast status` to read.
"""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import orjson

from serving.config import Config
from serving.deployments import config_version
from serving.errors import StateError

SOCKET, IN_FORCE = "control.sock", "config.json"
"""Their names in the runtime folder."""
REQUEST_PATIENCE_S = 2.0
"""What a client may take to say what it wants; it has written it before it connects."""
MAX_REQUEST_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class InForce:
    """The config that the server runs with, since ``since_s`` (seconds since 1970)."""

    config: Config
    since_s: float

    @property
    def version(self) -> str:
        return config_version(self.config)

    def write(self, runtime_dir: Path) -> None:
        """Replace what was in force, whole or not at all."""
        new = runtime_dir / f"{IN_FORCE}.new"
        data = orjson.dumps({"config": self.config.model_dump(mode="json"), "since_s": self.since_s})
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        new.replace(runtime_dir / IN_FORCE)

    @classmethod
    def read(cls, runtime_dir: Path) -> Self | None:
        """None while the server has not begun to run anything. Raises StateError for what cannot be read."""
        path = runtime_dir / IN_FORCE
        try:
            parts = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}. Check that you may read it.") from error
        return cls(Config.model_validate(parts["config"]), parts["since_s"])


@dataclass(frozen=True, slots=True)
class Apply:
    """Have ``config`` take the place of the one whose version is ``base``; back to that one after ``timeout_s``."""

    config: Config
    base: str
    timeout_s: float

    def encode(self) -> bytes:
        parts = {"config": self.config.model_dump(mode="json"), "base": self.base, "timeout_s": self.timeout_s}
        return orjson.dumps(parts) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Apply":
        parts = orjson.loads(line)
        return cls(**{**parts, "config": Config.model_validate(parts["config"])})


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an `Apply`, or is becoming. Of the last kind but ``step``, it is the last."""

    kind: Literal["step", "applied", "failed", "refused"]
    message: str

    @property
    def is_last(self) -> bool:
        return self.kind != "step"


def apply(runtime_dir: Path, request: Apply) -> Iterator[Report]:
    """Ask the server in ``runtime_dir``, and hear until it is done. Raises StateError when it does not answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(runtime_dir / SOCKET))
            connection.sendall(request.encode())
            for line in connection.makefile("rb"):
                yield Report(**orjson.loads(line))
        except OSError as error:
            words = f"the server cannot be told of a config: {error.strerror or error}"
            raise StateError(f"{words}. Is it running? ballast status") from error


class Listener:
    """The holder's end: looked after twice a second, by a process that has other things to do."""

    def __init__(self, runtime_dir: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        path = runtime_dir / SOCKET
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen()
        self._socket.setblocking(False)

    def take(self) -> "tuple[Apply, Client] | None":
        """Who has asked for something since the last time, if anybody has."""
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return None
        client = Client(connection)
        try:
            return Apply.decode(_read_line(connection)), client
        except (OSError, ValueError, TypeError, KeyError) as error:
            client.tell(Report("refused", f"not understood: {error}"))
            client.close()
            return None

    def close(self) -> None:
        self._socket.close()


class Client:
    """Who has asked; it may leave, which changes nothing."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(REQUEST_PATIENCE_S)

    def tell(self, report: Report) -> None:
        try:
            self._connection.sendall(orjson.dumps(asdict(report)) + b"\n")
        except OSError:
            self.close()

    def close(self) -> None:
        self._connection.close()


def _read_line(connection: socket.socket) -> bytes:
    """Up to the first line's end. Raises OSError, also when that takes too long; ValueError when it is too much."""
    deadline_s = time.monotonic() + REQUEST_PATIENCE_S
    data = b""
    while not data.endswith(b"\n"):
        if len(data) > MAX_REQUEST_BYTES or time.monotonic() > deadline_s:
            raise ValueError("too long")
        part = connection.recv(2**16)
        if not part:
            raise ValueError("it ends in the middle")
        data += part
    return data
