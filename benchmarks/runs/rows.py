"""The lines of a run as columns. What each field means: `benchmarks/load/record.py`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.load.mistake import BenchError

_TIMES = ("intended_s", "dispatched_s", "sent_s", "first_token_s", "last_token_s", "end_s")
_COUNTS = ("prompt_tokens", "cached_tokens", "output_tokens")
_MOST_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Rows:
    """N requests, sorted by intended start; times in seconds after the start, NaN where it did not come to that.

    ``itl_us`` [G] holds all gaps, ``itl_row`` [G] the request of each.
    """

    intended_s: NDArray[np.float64]
    dispatched_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    last_token_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    outcome: NDArray[np.str_]
    pool: NDArray[np.str_]
    is_slow: NDArray[np.bool_]
    itl_us: NDArray[np.int64]
    itl_row: NDArray[np.int64]
    errors: Sequence[dict[str, Any]]
    """By status and message: how many, when the first and the last, and some request ids."""

    def __len__(self) -> int:
        return len(self.intended_s)

    @property
    def is_ok(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.outcome == "ok"
        return found

    @property
    def is_plain(self) -> NDArray[np.bool_]:
        """Whole answers whose pace was the server's, not a slow reader's: those that latencies are of."""
        return self.is_ok & ~self.is_slow

    @property
    def counts(self) -> NDArray[np.bool_]:
        """Those that the server should have answered: not hung up on, not cut off by the end of an interrupted run."""
        found: NDArray[np.bool_] = self.is_ok | (self.outcome == "error")
        return found

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        return self.first_token_s - self.intended_s

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        return self.end_s - self.intended_s

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Seconds per token after the first; NaN for answers of one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)
        return np.where(self.output_tokens > 1, found, np.nan)

    def after(self, at_s: float) -> "Rows":
        """The requests that were intended at ``at_s`` or later; ``errors`` stay those of all."""
        kept = self.intended_s >= at_s
        of_kept = kept[self.itl_row]
        columns = {
            field.name: getattr(self, field.name)[kept]
            for field in fields(self)
            if field.name not in ("itl_us", "itl_row", "errors")
        }
        number = np.cumsum(kept) - 1
        return replace(self, **columns, itl_us=self.itl_us[of_kept], itl_row=number[self.itl_row[of_kept]])

    @property
    def span_s(self) -> tuple[float, float]:
        """What rates and costs are taken over: from the first intended start to the last end of a whole answer, at
        least to the last intended start. One that hangs until its timeout does not make the others fewer."""
        return float(self.intended_s[0]), float(self.end_s[self.is_ok].max(initial=self.intended_s[-1]))


def read_rows(paths: Iterable[Path], after_s: float = 0.0) -> Rows:
    """Requests that were intended at ``after_s`` or later. Raises BenchError when a file holds something else."""
    kept: list[dict[str, Any]] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                kept += [row for row in map(orjson.loads, file) if row["intended_s"] >= after_s]
        except OSError as error:
            raise BenchError(f"{path}: cannot be read: {error.strerror}; it lies beside its run.json") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path}: a line is not a request of ours: {error!r}") from error
    kept.sort(key=lambda row: row["intended_s"])
    gaps = [row["itl_us"] for row in kept]
    columns: dict[str, Any] = {
        name: np.array([np.nan if row[name] is None else row[name] for row in kept], dtype=np.float64)
        for name in _TIMES
    }
    columns |= {name: np.array([row[name] for row in kept], dtype=np.int64) for name in _COUNTS}
    return Rows(
        **columns,
        outcome=np.array([row["outcome"] for row in kept], dtype=np.str_),
        pool=np.array([row["pool"] or "" for row in kept], dtype=np.str_),
        is_slow=np.array([row["is_slow"] for row in kept], dtype=np.bool_),
        itl_us=np.fromiter((gap for row in gaps for gap in row), dtype=np.int64),
        itl_row=np.repeat(np.arange(len(kept)), [len(row) for row in gaps]),
        errors=_errors(kept),
    )


def _errors(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[int | None, str], dict[str, Any]] = {}
    for row in rows:
        if row["outcome"] != "error":
            continue
        entry = found.setdefault(
            (row["status"], row["error"]),
            {"status": row["status"], "error": row["error"], "number": 0, "first_s": row["end_s"],
             "last_s": row["end_s"], "request_ids": []},
        )  # fmt: skip
        entry["number"] += 1
        # Rows are in the order of their starts.
        entry["first_s"], entry["last_s"] = min(entry["first_s"], row["end_s"]), max(entry["last_s"], row["end_s"])
        if row["request_id"] and len(entry["request_ids"]) < _MOST_EXAMPLES:
            entry["request_ids"].append(row["request_id"])
    return sorted(found.values(), key=lambda entry: -entry["number"])
