"""``server.json``: which server runs over a state folder, so that others can find it and nobody starts a second one."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from pydantic import JsonValue

from serving.config import Config
from serving.errors import StateError
from serving.lifecycle.processes import start_ticks


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server that was started: ``ballast up``'s process and what it uses. ``started_at_s`` is seconds since 1970.
    ``overrides`` are keys of ``server`` that it was told on the command line or in the environment, over its file.
    """

    pid: int
    start_ticks: int
    host: str
    port: int
    admin_port: int
    runtime_dir: str
    started_at_s: float
    config: str
    overrides: Mapping[str, JsonValue] = field(default_factory=dict)

    def is_running(self) -> bool:
        """False also when the process id has gone to another process since."""
        return start_ticks(self.pid) == self.start_ticks

    def overriding(self, config: Config) -> Config:
        """``config``, whatever file it is from, as this server would run it: with its ``overrides``, but for the state
        folder, by which the server was found.
        """
        keys = {key: value for key, value in self.overrides.items() if key != "state_dir"}
        return config.model_copy(update={"server": config.server.model_copy(update=keys)})

    @classmethod
    def read(cls, state_dir: Path) -> Self | None:
        """The record in ``state_dir``; None when there is none. Raises StateError for one that cannot be read."""
        path = record_path(state_dir)
        try:
            return cls(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}. Check that you may read it.") from error
        except (ValueError, TypeError) as error:
            raise StateError(f"{path} is damaged. See that no server runs, then remove it.") from error

    def write(self, state_dir: Path) -> None:
        """Replace the record, whole or not at all."""
        path = record_path(state_dir)
        new = path.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(asdict(self), file)
            new.replace(path)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}. Check that the folder can be written.") from error


def record_path(state_dir: Path) -> Path:
    return state_dir / "server.json"


def running_server(state_dir: Path) -> ServerRecord | None:
    """The server that runs over ``state_dir``, if one does."""
    record = ServerRecord.read(state_dir)
    return record if record is not None and record.is_running() else None
