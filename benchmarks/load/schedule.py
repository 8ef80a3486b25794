"""What is to be sent and when, as columns of numbers: computed once from a seed, then split over worker processes.

Nothing random is left to the workers. What a request says is a function of the seed and its index
(`benchmarks/load/prompts.py`), so no two workers draw the same and any number of workers sends the same requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.arrivals import Phase, Process, arrival_times_s
from benchmarks.load.lengths import LengthPairs, Lengths, draw_pairs
from benchmarks.load.mistake import BenchError
from benchmarks.simulator.trace import Trace

PROMPT, OUTPUT = Lengths("fixed", 128), Lengths("fixed", 64)
NEVER = 0
"""Of ``cancel_after``: the client stays to the end."""
_LAP_BITS = 32


class Kind(IntEnum):
    """What a request asks for beside text."""

    PLAIN = 0
    TOOLS = 1
    JSON = 2


@dataclass(frozen=True, slots=True)
class Workload:
    """What requests look like. Shares are of all requests; those of ``tools_share`` and ``json_share`` do not overlap.

    A conversation has ``turns`` requests, each with all that was said before; ``think_s`` passes between an answer and
    the next question. ``num_prefixes`` texts of ``prefix_tokens`` each are shared by all requests evenly.
    """

    prompt: Lengths = PROMPT
    output: Lengths = OUTPUT
    lengths_from: Trace | None = None
    prefix_tokens: int = 0
    num_prefixes: int = 1
    turns: int = 1
    think_s: float = 0.0
    tools_share: float = 0.0
    json_share: float = 0.0
    cancel_share: float = 0.0
    slow_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tools_share", "json_share", "cancel_share", "slow_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BenchError(f"{name} is {getattr(self, name)}; a share is between 0 and 1")
        if self.tools_share + self.json_share > 1.0:
            raise BenchError("the shares of tool calls and of structured output are more than 1 together")
        if self.turns < 1 or self.num_prefixes < 1:
            raise BenchError("a conversation has at least 1 turn, and there is at least 1 prefix to share")


@dataclass(frozen=True, slots=True)
class Planned:
    """One request. ``at_s`` is NaN where it follows another: a closed loop, or a later turn of a conversation."""

    index: int
    at_s: float
    session: int
    turn: int
    prompt_tokens: int
    output_tokens: int
    prefix: int
    kind: Kind
    cancel_after: int
    """Output events after which the client hangs up; ``NEVER``."""
    is_slow: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """Columns of equal length, one entry per request, sorted by session and turn; sessions are sorted by arrival."""

    index: NDArray[np.int64]
    at_s: NDArray[np.float64]
    session: NDArray[np.int64]
    turn: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prefix: NDArray[np.int64]
    kind: NDArray[np.int64]
    cancel_after: NDArray[np.int64]
    is_slow: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def is_open(self) -> bool:
        """Whether sessions have times of their own."""
        return len(self) > 0 and not bool(np.isnan(self.at_s[0]))

    @property
    def num_sessions(self) -> int:
        return len(np.unique(self.session))

    @property
    def span_s(self) -> float:
        """Until the last arrival; 0 for a closed loop."""
        return float(np.nanmax(self.at_s)) if self.is_open else 0.0

    def part(self, worker: int, num_workers: int) -> "Schedule":
        """Every ``num_workers``-th session, conversations whole: each request is in exactly one part."""
        mine = self.session % num_workers == worker
        return replace(self, **{field.name: getattr(self, field.name)[mine] for field in fields(self)})

    def sessions(self, lap: int = 0) -> Iterator[Sequence[Planned]]:
        """The requests of each session, in the order of arrival. Another ``lap``: the same shapes, other words."""
        offset = lap << _LAP_BITS
        columns: list[Any] = [getattr(self, field.name).tolist() for field in fields(self)]
        group: list[Planned] = []
        for row in zip(*columns, strict=True):
            index, at_s, session, turn, prompt_tokens, output_tokens, prefix, kind, cancel_after, is_slow = row
            planned = Planned(
                index + offset, at_s, session + offset, turn, prompt_tokens, output_tokens, prefix,
                Kind(kind), cancel_after, is_slow,
            )  # fmt: skip
            if group and group[0].session != planned.session:
                yield group
                group = []
            group.append(planned)
        if group:
            yield group


def open_schedule(
    workload: Workload, phases: Sequence[Phase], process: Process, seed: int, burstiness: float = 1.0
) -> Schedule:
    """Sessions arrive by themselves, whatever becomes of those before. Raises BenchError when none does."""
    arrivals, shapes = _streams(seed)
    at_s = arrival_times_s(phases, process, arrivals, burstiness)
    if not len(at_s):
        raise BenchError("the schedule is empty: raise the rate or the duration")
    return _fill(workload, at_s, shapes)


def closed_schedule(workload: Workload, num_sessions: int, seed: int) -> Schedule:
    """Sessions follow each other: one begins when another has ended."""
    return _fill(workload, np.full(num_sessions, np.nan), _streams(seed)[1])


def trace_schedule(workload: Workload, trace: Trace, seed: int) -> Schedule:
    """Arrivals and lengths of a trace; what else requests ask for is the workload's. Its turns are its own: 1."""
    if workload.turns != 1:
        raise BenchError("a trace says when each request arrives: it cannot be replayed with more than 1 turn")
    prompts, outputs = (np.asarray(row, dtype=np.int64) for row in (trace.prompt_tokens, trace.output_tokens))
    return _fill(workload, np.asarray(trace.arrival_s), _streams(seed)[1], (prompts, outputs))


def _streams(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Independent streams for arrivals and shapes: another rate leaves the requests' shapes as they were."""
    arrivals, shapes = np.random.SeedSequence(seed).spawn(2)
    return np.random.default_rng(arrivals), np.random.default_rng(shapes)


def _fill(
    workload: Workload, at_s: NDArray[np.float64], rng: np.random.Generator, lengths: LengthPairs | None = None
) -> Schedule:
    """Draw everything but the arrivals, and the ``lengths`` of prompts and answers where they are given."""
    turns = workload.turns
    number = len(at_s) * turns
    turn = np.tile(np.arange(turns), len(at_s))
    prompts, outputs = lengths or _lengths(workload, rng, number)
    draws = rng.random((3, number))
    kind = np.where(draws[0] < workload.tools_share, Kind.TOOLS, Kind.PLAIN)
    kind = np.where((draws[0] >= workload.tools_share) & (draws[0] < workload.tools_share + workload.json_share),
                    Kind.JSON, kind)  # fmt: skip
    cancels = draws[1] < workload.cancel_share
    return Schedule(
        index=np.arange(number),
        at_s=np.where(turn == 0, np.repeat(at_s, turns), np.nan),
        session=np.repeat(np.arange(len(at_s)), turns),
        turn=turn,
        prompt_tokens=prompts,
        output_tokens=outputs,
        prefix=rng.integers(0, workload.num_prefixes, number // turns).repeat(turns),
        kind=kind.astype(np.int64),
        cancel_after=np.where(cancels, rng.integers(1, np.maximum(outputs, 2)), NEVER),
        is_slow=draws[2] < workload.slow_share,
    )


def _lengths(workload: Workload, rng: np.random.Generator, number: int) -> LengthPairs:
    if workload.lengths_from is not None:
        return draw_pairs(workload.lengths_from, rng, number)
    return workload.prompt.draw(rng, number), workload.output.draw(rng, number)
