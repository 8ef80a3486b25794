"""A request trace: when requests arrive, how long their prompts and their answers are.

Read from any of: `arrival_s,prompt_tokens,output_tokens` (ours), `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure),
`Timestamp,Model,Request tokens,Response tokens,…` (BurstGPT), JSON lines with `timestamp` in ms, `input_length` and
`output_length` (Mooncake); plain or gzip. Times are made to start at the first arrival.
"""

import csv
import datetime
import gzip
import itertools
import json
import math
import random
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_MOVED_S = 60.0
"""A resampled request is at most this far from where it was."""
_MOST_TOKENS = 2**31
"""Of a prompt or an answer: more is a damaged row."""


class TraceError(Exception):
    """The file is no trace that we can read. Says what and where."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests sorted by arrival: seconds since the first, tokens of prompt and answer (at least 1 each)."""

    name: str
    arrival_s: "array[float]"
    prompt_tokens: "array[int]"
    output_tokens: "array[int]"

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        return self.arrival_s[-1]

    def part(self, start_s: float, end_s: float) -> "Trace":
        """The requests of [start_s, end_s), starting anew at 0. For tuning on one part and testing on another."""
        kept = [index for index, at_s in enumerate(self.arrival_s) if start_s <= at_s < end_s]
        return Trace(
            f"{self.name}[{start_s:g}:{end_s:g}]",
            array("d", (self.arrival_s[index] - start_s for index in kept)),
            array("l", (self.prompt_tokens[index] for index in kept)),
            array("l", (self.output_tokens[index] for index in kept)),
        )

    def resampled(self, span_s: float, rate_per_s: float, seed: int) -> "Trace":
        """As long and as dense as asked: the trace again and again, each request as often as the rate needs, at most a
        minute away from where it was. Same arguments, same trace.

        Raises TraceError when all requests come at once: there is no rate that could be changed.
        """
        if self.span_s <= 0.0:
            raise TraceError(
                f"{self.name}: all of its {len(self)} requests come at the same time, so that it has no rate to "
                "change; replay it as it is, or use another trace"
            )
        draw = random.Random(seed)
        places = [
            (lap * self.span_s + at_s, index)
            for lap in range(math.ceil(span_s / self.span_s))
            for index, at_s in enumerate(self.arrival_s)
        ]
        # The last lap is cut where the span ends, so what counts is the density of what is left, not of the trace.
        num_places = bisect_left(places, (span_s, 0))
        copies = rate_per_s * span_s / num_places
        rows = []
        for place_s, index in places[:num_places]:
            for _ in range(int(copies + draw.random())):
                moved_s = abs(place_s + draw.uniform(-_MOST_MOVED_S, _MOST_MOVED_S))
                rows.append((moved_s if moved_s <= span_s else 2.0 * span_s - moved_s, index))
        rows.sort()
        return Trace(
            f"{self.name}*",
            array("d", (at_s - rows[0][0] for at_s, _ in rows)),
            array("l", (self.prompt_tokens[index] for _, index in rows)),
            array("l", (self.output_tokens[index] for _, index in rows)),
        )


def read_trace(path: Path) -> Trace:
    """Raises TraceError: a file that cannot be read, a line that is no request (or no known header), no request at
    all."""
    name = path.name.removesuffix(".gz")
    for suffix in (".csv", ".jsonl"):
        name = name.removesuffix(suffix)
    line = 0

    def lines(file: Iterable[str]) -> Iterator[str]:
        nonlocal line
        for text in file:
            line += 1
            yield text

    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            rows = sorted(_rows(lines(file)))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise TraceError(f"{path}, line {line}: no request: {error}; mend this line or remove it") from error
    if not rows:
        raise TraceError(f"{path}: no requests")
    first_s = rows[0][0]
    return Trace(
        name,
        array("d", (row[0] - first_s for row in rows)),
        array("l", (max(1, row[1]) for row in rows)),
        array("l", (max(1, row[2]) for row in rows)),
    )


def _rows(lines: Iterator[str]) -> Iterator[tuple[float, int, int]]:
    first = next(lines, None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    if first.lstrip().startswith("{"):
        for line in lines:
            if line.strip():
                row = json.loads(line)
                yield _seconds(row["timestamp"]) / 1000.0, _tokens(row["input_length"]), _tokens(row["output_length"])
        return
    reader = csv.DictReader(lines)
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    for at, prompt, output in _COLUMNS:
        if at in columns and prompt in columns and output in columns:
            for row in reader:
                number = _tokens(row[columns[output]])
                if number > 0 or at != "timestamp" or "model" not in columns:  # BurstGPT marks failures with 0
                    yield _seconds(row[columns[at]]), _tokens(row[columns[prompt]]), number
            return
    raise ValueError(f"columns {sorted(columns)} are of no known trace format")


def _tokens(value: Any) -> int:
    """Raises ValueError, TypeError."""
    number = float(value)
    if not abs(number) <= _MOST_TOKENS:
        raise ValueError(f"{value} is no number of tokens")
    return int(number)


_COLUMNS = (
    ("arrival_s", "prompt_tokens", "output_tokens"),
    ("timestamp", "contexttokens", "generatedtokens"),
    ("timestamp", "request tokens", "response tokens"),
)


def _seconds(value: Any) -> float:
    """Raises ValueError, TypeError, OverflowError."""
    try:
        seconds = float(value)
    except ValueError:
        # Azure writes seven digits of a second and sometimes a zone; Python reads six.
        head, dot, tail = value.strip().replace("T", " ").partition(".")
        digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
        moment = datetime.datetime.fromisoformat(head.removesuffix("Z"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return moment.timestamp() + (float(f"0.{digits}") if dot else 0.0)
    if not math.isfinite(seconds):
        raise ValueError(f"{value} is no time")
    return seconds
