"""``tune.json``: what was measured, written anew after each visit, so that a run which ends early has left it all and
can be gone on with.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.load.mistake import BenchError
from benchmarks.tune.bench import Bench
from benchmarks.tune.search import Visit, Wish
from benchmarks.tune.settings import identity

NAME = "tune.json"
Document = dict[str, Any]


class Journal:
    """Measures each wish once: what an earlier run of the same folder has measured is read instead.

    The search is a function of what was measured, so a run that is gone on with asks for the same visits in the same
    order, and then for new ones.
    """

    def __init__(self, bench: Bench, folder: Path, document: Document) -> None:
        self._bench, self._folder, self._document = bench, folder, document
        self._entries: list[Mapping[str, Any]] = document["visits"]

    def measure(self, wish: Wish) -> Visit:
        """Raises KeyboardInterrupt."""
        key = (wish.stage, wish.number, identity(wish.settings))
        for entry in self._entries:
            if (entry["stage"], entry["number"], identity(entry["settings"])) == key:
                return self._known(wish, entry)
        visit = self._bench.measure(wish)
        entry = {name: getattr(visit, name) for name in ("stage", "number", "settings", "folder", "wall_s", "error")}
        self._entries.append({**entry, "least_per_s": wish.least_per_s})
        environment.write(self._folder / NAME, self._document)
        return visit

    def _known(self, wish: Wish, entry: Mapping[str, Any]) -> Visit:
        folder = self._folder / entry["folder"]
        asked = replace(wish, least_per_s=entry["least_per_s"])
        if not (folder / "run.json").exists():  # its server did not start
            return Visit(
                wish.settings, wish.stage, wish.number, error=entry["error"], wall_s=entry["wall_s"], folder=folder.name
            )
        return replace(self._bench.read(asked, folder, entry["error"]), wall_s=entry["wall_s"])


def reopen(folder: Path, question: Document) -> Document:
    """The document of an earlier run. Raises BenchError when it asked something else."""
    path = folder / NAME
    try:
        document: Document = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"--resume {folder}: {NAME} cannot be read: {error.strerror}; name a tune's folder") from error
    except ValueError as error:
        raise BenchError(f"--resume {folder}: {NAME} is damaged: {error}; begin again without --resume") from error
    asked = json.loads(json.dumps(question))
    differing = [name for name in asked if asked[name] != document.get("question", {}).get(name)]
    if differing:
        raise BenchError(
            f"--resume {folder}: that run was about something else ({', '.join(differing)} differ); give the same "
            "config, workload, SLO and settings, or begin again without --resume"
        )
    return document
