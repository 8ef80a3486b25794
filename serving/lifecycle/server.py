"""A whole server under one roof: claims the state folder, starts the process that holds Ray, and leaves nothing
behind.
"""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from serving.cluster import new_runtime_dir
from serving.config import Config
from serving.errors import StateError
from serving.lifecycle.launch import Event, Launch, decode_event
from serving.lifecycle.processes import RUNTIME_DIR_VARIABLE, end_processes_of, start_ticks
from serving.lifecycle.record import ServerRecord, record_path
from serving.tenancy.private_files import ensure_private_folder, folder_lock

STOP_MARGIN_S = 15.0
"""What Ray may take to stop beyond the time that requests in flight get."""


class StateClaim:
    """The exclusive right to run a server over a state folder, and the runtime folder of that server."""

    def __init__(self, config: Config, config_path: Path, overrides: Mapping[str, JsonValue] | None = None) -> None:
        self._config = config
        self._config_path = config_path
        self._overrides = overrides or {}
        self._state_dir = config.server.state_dir
        self.runtime_dir = Path()
        self.ended_predecessor: ServerRecord | None = None
        """A server that was killed, and whose remains have been cleared away."""

    def __enter__(self) -> Self:
        """Raises StateError when another server runs over the folder, or it cannot be used."""
        ensure_private_folder(self._state_dir)
        with folder_lock(self._state_dir):
            former = ServerRecord.read(self._state_dir)
            if former is not None and former.is_running():
                where = f"process {former.pid}, http://{former.host}:{former.port}"
                raise StateError(
                    f"A server already runs over {self._state_dir}: {where}. Stop it with 'ballast down', or choose "
                    "another server.state_dir."
                )
            if former is not None:
                clear_away(Path(former.runtime_dir))
                self.ended_predecessor = former
            self.runtime_dir = new_runtime_dir()
            self._record().write(self._state_dir)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clear_away(self.runtime_dir)
        record_path(self._state_dir).unlink(missing_ok=True)

    def _record(self) -> ServerRecord:
        server = self._config.server
        ticks = start_ticks(os.getpid())
        assert ticks is not None, "we are running"
        return ServerRecord(
            pid=os.getpid(),
            start_ticks=ticks,
            host=server.host,
            port=server.port,
            admin_port=server.admin_port,
            runtime_dir=str(self.runtime_dir),
            started_at_s=time.time(),
            config=str(self._config_path.absolute()),
            overrides=self._overrides,
        )


def clear_away(runtime_dir: Path) -> None:
    """End what still runs for ``runtime_dir`` and remove it."""
    end_processes_of(runtime_dir)
    shutil.rmtree(runtime_dir, ignore_errors=True)


class RayProcess:
    """The process that holds Ray (`holder.py`), in a process group of its own: a terminal's Ctrl-C reaches us alone."""

    def __init__(self, launch: Launch, output: Path) -> None:
        """``output`` gets what Ray prints."""
        environment = {**os.environ, RUNTIME_DIR_VARIABLE: launch.runtime_dir}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as in Cluster.start, for what this process imports itself
        output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.lifecycle.holder", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                process_group=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(launch.encode())
        self._process.stdin.close()
        self._events = self._process.stdout
        os.set_blocking(self._events.fileno(), False)
        self._partial = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._events, selectors.EVENT_READ)

    def events(self, timeout_s: float) -> list[Event]:
        """What has happened; waits up to ``timeout_s`` for something."""
        self._selector.select(timeout_s)
        data = self._events.read() or b""
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [decode_event(line) for line in lines]

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        if not self.has_ended:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once. What it started is left to ``clear_away``."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._selector.close()
        self._events.close()
