"""``run.json``: one document per run, and the files beside it.

Written anew after each round, so that a run which is cut short has left what it had.
"""

import datetime
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.load.mistake import BenchError

SCHEMA_VERSION = 1
NAME = "run.json"

Document = dict[str, Any]


def new_folder(kind: str, wanted: Path | None) -> Path:
    """The run's folder, made. Raises BenchError when it holds a run already, or cannot be made or written to."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    folder = wanted or Path("results") / "bench" / f"{kind}-{stamp}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder}: {error.strerror}; name another folder with --out") from error
    check_writable(folder, "name another folder with --out")
    if (folder / NAME).exists():
        raise BenchError(f"{folder} holds a run already; name another folder with --out, or remove it")
    return folder


def check_writable(folder: Path, what_to_do: str) -> None:
    """Raises BenchError when no file can be made in an existing folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BenchError(f"{folder}: nothing can be written there ({error.strerror}); {what_to_do}") from error


def head(kind: str, arguments: Sequence[str]) -> Document:
    """What every document begins with."""
    return {
        **environment.describe(),
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "status": "running",
        "command": shlex.join(["ballast", "bench", kind, *environment.without_folders(arguments)]),
    }


def write(folder: Path, document: Document) -> Path:
    """Replaces ``run.json`` whole or not at all."""
    path = folder / NAME
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    new.replace(path)
    return path


@dataclass(frozen=True, slots=True)
class Found:
    """A document and the folder that its files lie in."""

    document: Document
    folder: Path

    def rows_of(self, number: int) -> list[Path]:
        """The files with the requests of one of its rounds."""
        return [self.folder / name for name in self.document["rounds"][number]["files"]]


def read(path: Path) -> Found:
    """A run, by its folder or its run.json. Raises BenchError."""
    file = path / NAME if path.is_dir() else path
    try:
        document = json.loads(file.read_text())
    except OSError as error:
        raise BenchError(f"{file}: cannot be read: {error.strerror}; name a run's folder or its {NAME}") from error
    except ValueError as error:
        raise BenchError(f"{file}: no JSON: {error}") from error
    if not isinstance(document, dict) or "rounds" not in document:
        raise BenchError(f"{file}: no run of `ballast bench`; those have `rounds`")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise BenchError(
            f"{file}: schema_version {document.get('schema_version')}, and this Ballast reads {SCHEMA_VERSION}; "
            "use the one that wrote it"
        )
    return Found(document, file.parent)


def say(text: str) -> None:
    """For a person, so that stdout stays the document's."""
    print(text, file=sys.stderr)
