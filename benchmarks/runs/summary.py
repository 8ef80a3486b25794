"""The figures of one round, from its rows: percentiles with intervals, goodput, outcomes.

Definitions. TTFT: to the first output event. ITL: between two output events, an engine that falls behind puts several
tokens into one. TPOT: from first to last output event, per token after the first. E2E: to the last byte. Each counts
from the intended start; its ``_service`` twin counts from when the request was sent. Slow readers and answers that were
hung up on are in none of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.histogram import bucket_counts, quantiles_us
from benchmarks.runs.intervals import (
    LEAST_BEYOND,
    NUM_BLOCKS,
    blocks_of,
    draw_weights,
    interval,
    resampled_quantiles_us,
)
from benchmarks.runs.rows import Rows
from benchmarks.runs.slo import Slo

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
LATENCIES = ("ttft", "itl", "tpot", "e2e", "ttft_service", "e2e_service", "client_queue")
_US_PER_S = 1e6
_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of one latency [N] in microseconds, and the block of time that each belongs to [N]."""

    values_us: NDArray[np.int64]
    block: NDArray[np.int64]
    num_blocks: int = NUM_BLOCKS


def sample(rows: Rows, latency: str) -> Sample:
    """One of ``LATENCIES``."""
    block = blocks_of(rows.intended_s)
    kept = rows.is_plain
    if latency == "itl":
        of_kept = kept[rows.itl_row]
        return Sample(rows.itl_us[of_kept], block[rows.itl_row[of_kept]])
    seconds = {
        "ttft": rows.ttft_s,
        "tpot": rows.tpot_s,
        "e2e": rows.e2e_s,
        "ttft_service": rows.first_token_s - rows.sent_s,
        "e2e_service": rows.end_s - rows.sent_s,
        "client_queue": rows.sent_s - rows.intended_s,
    }[latency]
    kept = kept & ~np.isnan(seconds)
    return Sample(np.rint(seconds[kept] * _US_PER_S).astype(np.int64), block[kept])


def summarise(rows: Rows, slo: Slo, seed: int) -> dict[str, Any]:
    """A JSON object; units are in its keys."""
    if not len(rows):
        return {"requests": _outcomes(rows), "latency": {}, "throughput": {}, "goodput": {}, "errors": []}
    weights = draw_weights(np.random.default_rng(seed), [NUM_BLOCKS])
    return {
        "requests": _outcomes(rows),
        "latency": {f"{name}_ms": _percentiles(sample(rows, name), weights) for name in LATENCIES},
        "throughput": _throughput(rows),
        "goodput": _goodput(rows, slo, weights),
        "errors": list(rows.errors),
    }


def _outcomes(rows: Rows) -> dict[str, int]:
    found = {f"num_{name}": int((rows.outcome == name).sum()) for name in ("ok", "error", "cancelled", "interrupted")}
    return {"num_measured": len(rows), **found, "num_slow_readers": int(rows.is_slow.sum())}


def _percentiles(found: Sample, weights: NDArray[np.float64]) -> dict[str, Any]:
    number = len(found.values_us)
    counts, buckets = bucket_counts(found.values_us, found.block, found.num_blocks)
    shares = tuple(PERCENTILES.values())
    values = quantiles_us(counts.sum(axis=0, keepdims=True), buckets, shares)[0]
    drawn = resampled_quantiles_us(counts, buckets, shares, weights) if number else None
    most_us = float(found.values_us.max()) if number else np.nan
    result: dict[str, Any] = {"n": number, "mean": _ms(found.values_us.mean()) if number else None}
    for place, (name, share) in enumerate(PERCENTILES.items()):
        ci95 = None
        if drawn is not None and number * (1.0 - share) >= LEAST_BEYOND:
            ci95 = _known([_ms(bound) for bound in interval(drawn[:, place])])
        # A bucket's middle may lie beyond all that is in it.
        result[name] = {"value": _ms(min(values[place], most_us)), "ci95": ci95}
    result["max"] = _ms(most_us)
    return result


def _known(ends: list[float | None]) -> list[float | None] | None:
    """None: the interval is not known."""
    return None if None in ends else ends


def _ms(value_us: float) -> float | None:
    return None if np.isnan(value_us) else round(float(value_us) / 1000.0, 3)


def _throughput(rows: Rows) -> dict[str, float]:
    begin_s, end_s = rows.span_s
    span_s = max(end_s - begin_s, 1e-9)
    ok = rows.is_ok
    return {
        "span_s": round(span_s, 3),
        "offered_requests_per_s": round(len(rows) / max(float(np.ptp(rows.intended_s)), 1e-9), 4)
        if len(rows) > 1
        else 0.0,
        "requests_per_s": round(ok.sum() / span_s, 4),
        "prompt_tokens_per_s": round(float(rows.prompt_tokens[ok].sum()) / span_s, 3),
        "output_tokens_per_s": round(float(rows.output_tokens[ok].sum()) / span_s, 3),
        "prompt_tokens_mean": round(float(rows.prompt_tokens[ok].mean()), 2) if ok.any() else 0.0,
        "output_tokens_mean": round(float(rows.output_tokens[ok].mean()), 2) if ok.any() else 0.0,
        "cached_prompt_share": round(float(rows.cached_tokens.sum() / max(1, rows.prompt_tokens.sum())), 4),
    }


def share_in_slo(rows: Rows, slo: Slo, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Share of requests that met the SLO, and that of each resample; NaN where none counts."""
    counted = rows.counts
    block = blocks_of(rows.intended_s)
    met = np.bincount(block[slo.is_met(rows)], minlength=NUM_BLOCKS).astype(np.float64)
    number = np.bincount(block[counted], minlength=NUM_BLOCKS).astype(np.float64)
    if not counted.any():
        return float("nan"), np.full(len(weights), np.nan)
    drawn = weights @ number
    return float(met.sum() / number.sum()), np.where(drawn > 0.0, (weights @ met) / np.maximum(drawn, 1.0), np.nan)


def _share_interval(share: float, number: int, drawn: NDArray[np.float64]) -> list[float | None] | None:
    """Of ``share`` of ``number`` requests. Where all or none are in it every resample says the same, however few they
    are: then it is Wilson's (1927)."""
    low, high = interval(drawn)
    if not np.isnan(low) and share in (0.0, 1.0):
        beyond = _Z95**2 / (number + _Z95**2)
        low, high = (1.0 - beyond, 1.0) if share else (0.0, beyond)
    return _known([None if np.isnan(bound) else round(bound, 5) for bound in (low, high)])


def _goodput(rows: Rows, slo: Slo, weights: NDArray[np.float64]) -> dict[str, Any]:
    begin_s, end_s = rows.span_s
    span_s = max(end_s - begin_s, 1e-9)
    met = slo.is_met(rows)
    share, drawn = share_in_slo(rows, slo, weights)
    is_known = not np.isnan(share)
    return {
        "share_in_slo": round(share, 5) if is_known else None,
        "share_in_slo_ci95": _share_interval(share, int(rows.counts.sum()), drawn),
        "objective": slo.objective,
        "is_slo_held": bool(share >= slo.objective) if is_known else False,
        "requests_per_s": round(met.sum() / span_s, 4),
        "output_tokens_per_s": round(float(rows.output_tokens[met].sum()) / span_s, 3),
    }
