"""What rounds come to: each contender's figures, and their ratios to Ballast's with intervals.

A round measures all contenders one after the other, so that what else the machine does in that time meets them all.
The bootstrap keeps that: a round is drawn for both sides of a ratio or for none, then blocks of time within it for each
side by itself (`benchmarks/runs/intervals.py`).

Throughput is of the time in which all clients were at work: tokens count when they arrive, from the end of the warm-up
to when clients send no more. Counted by request instead, a round of a few seconds would show how its last answers
happened to end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.contenders import BALLAST, CONTENDERS
from benchmarks.runs.compare import NUM_RESAMPLES, Side, quantile
from benchmarks.runs.intervals import NUM_BLOCKS, draw_rounds, draw_weights, interval
from benchmarks.runs.rows import Rows

Judgement = Literal["ahead", "behind", "even", "unknown"]
METRICS = ("output_tokens_per_s", "ttft_p50_ms", "tpot_p50_ms")
JUDGED = ("output_tokens_per_s", "ttft_p50_ms")
"""Metrics in which nobody may be ahead of Ballast."""


@dataclass(frozen=True, slots=True)
class Case:
    """One load: ``mode`` says how tokens are chosen, a key of ``MODES``."""

    mode: str
    concurrency: int


MODES: dict[str, dict[str, float]] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 0.8, "top_p": 0.95}}


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender at one load in one round."""

    contender: str
    case: Case
    round: int
    turn: "Turn"


@dataclass(frozen=True, slots=True)
class Turn:
    """``rows`` are the requests after the warm-up; ``tokens`` [NUM_BLOCKS] what came in each block of ``span_s``;
    ``cpu_us_per_token`` what the server took for all tokens, those of the warm-up too (NaN: there were none)."""

    rows: Rows
    tokens: NDArray[np.float64]
    span_s: float
    cpu_us_per_token: float

    @classmethod
    def of(cls, rows: Rows, begin_s: float, end_s: float, cpu_s: float) -> "Turn":
        """Of all rows, those of the warm-up too, and the time in which all clients were at work."""
        num_tokens = int(rows.output_tokens.sum())
        cpu_us = cpu_s * 1e6 / num_tokens if num_tokens else float("nan")
        return cls(rows.after(begin_s), tokens_by_block(rows, begin_s, end_s), end_s - begin_s, cpu_us)


def tokens_by_block(rows: Rows, begin_s: float, end_s: float) -> NDArray[np.float64]:
    """Tokens of whole answers that arrived in each of ``NUM_BLOCKS`` equal stretches of time. An event that carried
    several counts as its answer's mean."""
    num_events = 1 + np.bincount(rows.itl_row, minlength=len(rows))
    per_event = np.where(rows.is_ok, rows.output_tokens / num_events, 0.0)
    since_first_s = np.cumsum(rows.itl_us) / 1e6
    before_s = np.concatenate([[0.0], since_first_s])[np.cumsum(num_events - 1) - (num_events - 1)]
    at_s = np.concatenate(
        [rows.first_token_s, rows.first_token_s[rows.itl_row] + since_first_s - before_s[rows.itl_row]]
    )
    weights = np.concatenate([per_event, per_event[rows.itl_row]])
    found, _ = np.histogram(at_s, NUM_BLOCKS, (begin_s, end_s), weights=weights)
    return found


@dataclass(frozen=True, slots=True)
class Ratio:
    """The contender's figure by Ballast's of the same rounds, with its 95 % interval."""

    value: float
    low: float
    high: float
    """NaN where too few were answered."""
    judgement: Judgement
    """Of the contender: ``ahead`` or ``behind`` when the whole interval is on that side of 1."""


def summarise(measured: Sequence[Measured], seed: int = 0) -> list[dict[str, Any]]:
    """One JSON object per load and contender."""
    found = []
    for case in sorted({each.case for each in measured}, key=lambda case: (case.mode, case.concurrency)):
        of_case = [each for each in measured if each.case == case]
        ours = {each.round: each.turn for each in of_case if each.contender == BALLAST}
        for contender in [name for name in CONTENDERS if any(each.contender == name for each in of_case)]:
            theirs = {each.round: each.turn for each in of_case if each.contender == contender}
            found.append(
                {
                    "contender": contender, "mode": case.mode, "concurrency": case.concurrency,
                    "num_rounds": len(theirs), **_figures(list(theirs.values()), seed),
                    "num_silent_rounds": sum(_is_silent(turn) for turn in theirs.values()),
                    "ratios": {} if contender == BALLAST else _ratios(ours, theirs, seed),
                }
            )  # fmt: skip
    return found


def _is_silent(turn: Turn) -> bool:
    """Whether nothing at all was answered."""
    return not turn.rows.is_ok.any()


def _figures(turns: Sequence[Turn], seed: int) -> dict[str, Any]:
    """Of all rounds together in which something was answered, as ratios are."""
    turns = [turn for turn in turns if not _is_silent(turn)] or turns
    rounds = [turn.rows for turn in turns]
    weights = draw_weights(np.random.default_rng(seed), [NUM_BLOCKS] * len(rounds), 1)
    num_ok = sum(int(rows.is_ok.sum()) for rows in rounds)
    tokens = sum(int(rows.output_tokens[rows.is_ok].sum()) for rows in rounds)
    return {
        **{name: _rounded(_metric(turns, name, weights)[0], 3) for name in METRICS if num_ok},
        "cpu_us_per_token": _median([turn.cpu_us_per_token for turn in turns]),
        "num_ok": num_ok,
        "num_failed": sum(int((rows.counts & ~rows.is_ok).sum()) for rows in rounds),
        "output_tokens_mean": round(tokens / max(1, num_ok), 2),
    }


def _rounded(value: float, places: int) -> float | None:
    """None: there was nothing to measure, as with TPOT of answers of one token."""
    return None if np.isnan(value) else round(value, places)


def _median(values: Sequence[float]) -> float | None:
    """Of those that were measured."""
    known = [value for value in values if not np.isnan(value)]
    return round(float(np.median(known)), 1) if known else None


def _ratios(ours: Mapping[int, Turn], theirs: Mapping[int, Turn], seed: int) -> dict[str, Any]:
    both = [number for number in theirs if number in ours]
    both = [number for number in both if not any(_is_silent(side[number]) for side in (ours, theirs))]
    if not both:
        return {}
    found = {
        name: ratio([ours[number] for number in both], [theirs[number] for number in both], name, seed)
        for name in METRICS
    }
    return {
        name: {
            "value": _rounded(each.value, 4),
            "ci95": None if np.isnan(each.low) else [each.low, each.high],
            "judgement": each.judgement,
        }
        for name, each in found.items()
    }


def ratio(ours: Sequence[Turn], theirs: Sequence[Turn], metric: str, seed: int = 0) -> Ratio:
    """``theirs`` by ``ours``, whose rounds belong together pair by pair."""
    rng = np.random.default_rng(seed)
    blocks = [NUM_BLOCKS] * len(ours)
    picked = draw_rounds(rng, len(blocks), NUM_RESAMPLES)
    a, drawn_a = _metric(ours, metric, draw_weights(rng, blocks, NUM_RESAMPLES, picked))
    b, drawn_b = _metric(theirs, metric, draw_weights(rng, blocks, NUM_RESAMPLES, picked))
    drawn = drawn_b / np.maximum(drawn_a, 1e-9)
    low, high = interval(drawn)
    return Ratio(b / max(a, 1e-9), round(low, 4), round(high, 4), judge(metric, low, high))


def judge(metric: str, low: float, high: float) -> Judgement:
    """More is better for rates, less for times."""
    if np.isnan(low):
        return "unknown"
    if low <= 1.0 <= high:
        return "even"
    return "ahead" if (low > 1.0) == metric.endswith("_per_s") else "behind"


def _metric(turns: Sequence[Turn], metric: str, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    if metric == "output_tokens_per_s":
        tokens, span_s = np.concatenate([turn.tokens for turn in turns]), sum(turn.span_s for turn in turns)
        return float(tokens.sum()) / span_s, (weights @ tokens) / span_s
    side = Side([turn.rows for turn in turns], is_closed=True)
    return quantile(side.latency(metric.partition("_")[0]), 0.5, weights)


def unknown(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """What cannot be judged and why, in words; empty when all can."""
    if not any(row["contender"] != BALLAST for row in summary):
        return ["no peer was measured beside Ballast"]
    silent = [row for row in summary if row["contender"] == BALLAST and not row["num_ok"]]
    # Where Ballast was silent nobody has ratios, and that says why.
    cases = [_case(row) for row in silent]
    unclear = [row for row in summary if row["contender"] != BALLAST and _is_unclear(row) and _case(row) not in cases]
    return [
        *(f"Ballast answered nothing at {_case(row)}" for row in silent),
        *(f"{row['contender']} was not measured well enough at {_case(row)}" for row in unclear),
    ]


def _case(row: Mapping[str, Any]) -> str:
    return f"C={row['concurrency']} ({row['mode']})"


def _is_unclear(row: Mapping[str, Any]) -> bool:
    """Whether a peer lacks a judgement that it should have."""
    return not row["ratios"] or any(row["ratios"][metric]["judgement"] == "unknown" for metric in JUDGED)


def ahead_of_ballast(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where somebody is ahead beyond noise, in words."""
    return [
        f"{row['contender']} in {metric} at {_case(row)}"
        for row in summary
        for metric in JUDGED
        if row["ratios"] and row["ratios"][metric]["judgement"] == "ahead"
    ]
