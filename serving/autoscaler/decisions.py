"""The record of what was decided, and why: a ring of two files that outlive the server, the newest decisions in one and
those before in the other.

A file begins with all that the first decision in it knew; each later line holds what was new. So any file can be
replayed by itself: `ballast autoscale replay FILE`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.autoscaler.documents import from_document, to_document
from serving.autoscaler.memory import Memory
from serving.autoscaler.policy import decide
from serving.autoscaler.types import Demand, Plan, PoolState, Spec
from serving.router.prediction import StepModel

FILE_NAME = "decisions.jsonl"
FORMER_FILE_NAME = "decisions.1.jsonl"
MAX_FILE_BYTES = 64 * 2**20
SCHEMA_VERSION = 2
_BLOCK_BYTES = 2**16
"""Read at once, from a file's end."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision for one model: what `decide` was told, and what it answered.

    ``at_s`` is Unix time; ``now_s`` the clock that `decide` was given.
    """

    at_s: float
    now_s: float
    model: str
    fleet: Mapping[str, PoolState]
    demand: Demand
    prices: Mapping[str, float]
    step_models: Mapping[str, StepModel]
    plan: Plan
    is_applied: bool
    """False: it was only recommended."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a file begins, for one model: the spec, and what was remembered before the first decision in it."""

    model: str
    spec: Spec
    memory: Memory
    schema_version: int = SCHEMA_VERSION


def with_models(spec: Spec, step_models: Mapping[str, StepModel]) -> Spec:
    """``spec`` with the speeds that were measured by then."""
    return replace(
        spec, pools=tuple(replace(pool, model=step_models.get(pool.name, pool.model)) for pool in spec.pools)
    )


class DecisionLog:
    """Appends to a file, which takes the place of the one put aside before when it is full."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._former_path = folder / FORMER_FILE_NAME
        self._started: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, decision: Decision, start: Start) -> None:
        """``start``: what was known before this decision, in case it is the first in its file. Raises OSError."""
        if self._path.exists() and self._path.stat().st_size > MAX_FILE_BYTES:
            self._path.replace(self._former_path)
            self._started.clear()
        documents = [{"decision": to_document(decision)}]
        if decision.model not in self._started:
            documents.insert(0, {"start": to_document(start)})
        try:
            with self._path.open("ab") as file:
                # A write that a full disk or a crash has cut short has left half a line.
                torn = b"" if self._is_whole() else b"\n"
                file.write(torn + b"".join(json.dumps(document).encode() + b"\n" for document in documents))
        except OSError:
            self._started.clear()  # after half a line, each model can be replayed from a new start only
            raise
        self._started.add(decision.model)

    def _is_whole(self) -> bool:
        """Whether the file ends with a whole line."""
        with self._path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def read_file(path: Path) -> Iterator[Start | Decision]:
    """What a file holds, in order. A line that was cut short is left out: it is the last, or a start follows it. Raises
    OSError, ValueError (with the line's number)."""
    torn: ValueError | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                document = json.loads(line)
            except ValueError as error:
                if torn is not None:
                    raise torn from error
                torn = ValueError(f"{path}, line {number}: {error}")
                continue
            try:
                entry = entry_of(document)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if torn is not None and not isinstance(entry, Start):
                raise torn
            torn = None
            yield entry


def read_back(path: Path) -> Iterator[Any]:
    """The JSON values of a file's lines, the newest first; a line that was cut short is left out. Raises OSError."""
    for line in _lines_back(path):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _lines_back(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        begin, head = file.seek(0, os.SEEK_END), b""
        while begin > 0:
            num_bytes = min(begin, _BLOCK_BYTES)
            begin = file.seek(begin - num_bytes)
            head, *lines = (file.read(num_bytes) + head).split(b"\n")
            yield from reversed(lines)
        yield head


def entry_of(document: Any) -> Start | Decision:
    """What one line holds. Raises ValueError: it is of another version or shape."""
    match document:
        case {"start": start}:
            if isinstance(start, dict) and start.get("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"schema version {start.get('schema_version')!r}; this is version {SCHEMA_VERSION}")
            return from_document(Start, start)
        case {"decision": decision}:
            return from_document(Decision, decision)
    raise ValueError("neither a start nor a decision")


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded decision, and what `decide` answers to the same today."""

    recorded: Decision
    plan: Plan

    @property
    def is_same(self) -> bool:
        return dict(self.plan.targets) == dict(self.recorded.plan.targets)


def replay(entries: Iterator[Start | Decision]) -> Iterator[Replayed]:
    """Decide again what was decided. Raises ValueError: a decision comes before its start."""
    specs: dict[str, Spec] = {}
    memories: dict[str, Memory] = {}
    for entry in entries:
        if isinstance(entry, Start):
            specs[entry.model], memories[entry.model] = entry.spec, entry.memory
            continue
        if entry.model not in specs:
            raise ValueError(f"the file has no start for model '{entry.model}'")
        spec = with_models(specs[entry.model], entry.step_models)
        plan, memories[entry.model] = decide(
            entry.now_s, entry.fleet, entry.demand, entry.prices, spec, memories[entry.model]
        )
        yield Replayed(entry, plan)
