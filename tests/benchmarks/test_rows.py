"""Rows of a run become figures, and the figures say how sure they are."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks.load.histogram import bucket_counts
from benchmarks.load.mistake import BenchError
from benchmarks.runs.compare import Side
from benchmarks.runs.cost import Prices, cost_of
from benchmarks.runs.intervals import blocks_of, draw_weights, interval, resampled_quantiles_us
from benchmarks.runs.rows import Rows, read_rows
from benchmarks.runs.slo import Slo, parse_slo
from benchmarks.runs.summary import sample, summarise
from benchmarks.runs.words import _cost, verdict


def row(at_s: float, **changed: Any) -> dict[str, Any]:
    """A request sent 10 ms late whose first token came after 100 ms, and three more each 20 ms later."""
    return {
        "index": 0, "session": 0, "turn": 0, "kind": "plain", "is_slow": False, "outcome": "ok", "status": 200,
        "error": None, "finish_reason": "length", "request_id": "r", "pool": None, "fallback": None,
        "intended_s": at_s, "dispatched_s": at_s + 0.005, "sent_s": at_s + 0.01, "first_byte_s": at_s + 0.1,
        "first_token_s": at_s + 0.1, "last_token_s": at_s + 0.16, "end_s": at_s + 0.17,
        "prompt_tokens": 100, "cached_tokens": 25, "output_tokens": 4, "itl_us": [20_000, 20_000, 20_000], **changed,
    }  # fmt: skip


def rows_of(folder: Path, rows: list[dict[str, Any]], after_s: float = 0.0) -> Rows:
    path = folder / "requests-0.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)) + b"\n")
    return read_rows([path], after_s)


FAILED = {"outcome": "error", "status": 503, "error": "HTTP 503: full", "first_token_s": None, "last_token_s": None,
          "itl_us": [], "output_tokens": 0, "prompt_tokens": 0}  # fmt: skip


def test_each_latency_is_what_its_definition_says(tmp_path: Path) -> None:
    found = summarise(rows_of(tmp_path, [row(0.1 * at) for at in range(100)]), Slo(), seed=1)
    medians = {name: entry["p50"]["value"] for name, entry in found["latency"].items()}
    expected = {
        "ttft_ms": 100.0, "ttft_service_ms": 90.0, "itl_ms": 20.0, "tpot_ms": 20.0, "e2e_ms": 170.0,
        "e2e_service_ms": 160.0, "client_queue_ms": 10.0,
    }  # fmt: skip
    assert medians == pytest.approx(expected, rel=0.001)
    assert found["latency"]["itl_ms"]["n"] == 300
    assert found["throughput"]["output_tokens_per_s"] == pytest.approx(400 / (9.9 + 0.17), rel=0.001)
    assert found["throughput"]["cached_prompt_share"] == 0.25


def test_failed_cancelled_and_slow_ones_are_counted_apart(tmp_path: Path) -> None:
    rows = [row(0.1 * at) for at in range(20)]
    rows += [row(3.0, **FAILED), row(3.1, **FAILED), row(3.2, outcome="cancelled"), row(3.3, is_slow=True, end_s=99.0)]
    found = summarise(rows_of(tmp_path, rows), Slo(), seed=1)
    assert found["requests"] == {
        "num_measured": 24, "num_ok": 21, "num_error": 2, "num_cancelled": 1, "num_interrupted": 0,
        "num_slow_readers": 1,
    }  # fmt: skip
    assert found["latency"]["ttft_ms"]["n"] == 20
    assert found["latency"]["e2e_ms"]["max"] == pytest.approx(170.0)
    (error,) = found["errors"]
    assert (error["status"], error["number"], error["request_ids"]) == (503, 2, ["r", "r"])


def test_errors_are_told_from_the_first_that_ended_to_the_last(tmp_path: Path) -> None:
    ends_s = {0.0: 60.0, 1.0: 1.5, 2.0: 2.5}
    (error,) = rows_of(tmp_path, [row(at_s, **FAILED | {"end_s": end_s}) for at_s, end_s in ends_s.items()]).errors
    assert (error["first_s"], error["last_s"]) == (1.5, 60.0)


def test_a_failed_request_misses_the_slo_and_one_hung_up_on_does_not_count(tmp_path: Path) -> None:
    rows = [row(0.1 * at) for at in range(18)]
    rows += [row(3.0, **FAILED), row(3.1, first_token_s=4.0), row(3.2, outcome="cancelled", first_token_s=9.0)]
    goodput = summarise(rows_of(tmp_path, rows), parse_slo("ttft=150ms,objective=0.9"), seed=1)["goodput"]
    assert goodput["share_in_slo"] == 0.9
    assert goodput["is_slo_held"] is True
    assert goodput["share_in_slo_ci95"][0] < 0.9 < goodput["share_in_slo_ci95"][1]


@pytest.mark.parametrize(("bound_s", "ends"), [(1.0, [0.4385, 1.0]), (0.01, [0.0, 0.5615])])
def test_three_requests_of_one_kind_do_not_prove_that_all_are(
    tmp_path: Path, bound_s: float, ends: list[float]
) -> None:
    rows = rows_of(tmp_path, [row(float(at)) for at in range(3)])
    goodput = summarise(rows, Slo(ttft_s=bound_s), seed=1)["goodput"]
    assert goodput["share_in_slo_ci95"] == pytest.approx(ends, abs=1e-4)


def test_an_answer_of_one_token_has_no_tpot_to_miss(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [row(0.0, output_tokens=1, itl_us=[]), row(1.0), row(2.0, **FAILED)])
    assert Slo(tpot_s=0.019).is_met(rows).tolist() == [True, False, False]
    assert len(sample(rows, "tpot").values_us) == 1


def test_what_was_intended_in_the_warmup_is_left_out(tmp_path: Path) -> None:
    assert len(rows_of(tmp_path, [row(float(at)) for at in range(10)], after_s=4.0)) == 6


def test_a_percentile_with_too_few_beyond_it_has_no_interval(tmp_path: Path) -> None:
    found = summarise(rows_of(tmp_path, [row(0.1 * at) for at in range(100)]), Slo(), seed=1)["latency"]["ttft_ms"]
    assert found["p90"]["ci95"] is not None
    assert found["p99"]["ci95"] is None


def test_what_lies_in_a_few_moments_has_no_interval(tmp_path: Path) -> None:
    """A server that died early, a closed loop of one wave: a third of all resamples would have drawn nothing."""
    rows = [row(0.0) for _ in range(20)] + [row(3.0, **FAILED)]
    found = summarise(rows_of(tmp_path, rows), Slo(ttft_s=1.0), seed=1)
    assert found["latency"]["ttft_ms"]["p50"]["ci95"] is None
    assert verdict({**found, "generator": {"complaint": None}}).startswith("SLO MISSED: 95.24% in SLO (95 % CI ")
    only = summarise(rows_of(tmp_path, [row(0.0) for _ in range(20)]), Slo(ttft_s=1.0), seed=1)
    assert only["goodput"]["share_in_slo_ci95"] is None
    assert "(95 % CI not known)" in verdict({**only, "generator": {"complaint": None}})


def test_nothing_measured_is_no_division_by_nothing(tmp_path: Path) -> None:
    found = summarise(rows_of(tmp_path, [row(0.0)], after_s=5.0), Slo(), seed=1)
    assert found["requests"]["num_measured"] == 0
    all_failed = summarise(rows_of(tmp_path, [row(0.0, **FAILED)]), Slo(), seed=1)
    assert all_failed["goodput"]["share_in_slo"] == 0.0
    assert all_failed["latency"]["ttft_ms"]["p50"] == {"value": None, "ci95": None}


def test_an_interval_is_as_wide_as_the_blocks_differ() -> None:
    """Requests that slow down together are no independent witnesses: intervals that took them for such would be far
    too narrow, and hold the truth far less often than they say."""
    rng = np.random.default_rng(1)
    covered = narrow = 0
    for _ in range(60):
        levels_us = np.exp(rng.normal(0.0, 0.2, 30)) * 10_000
        values = (levels_us.repeat(100) * np.exp(rng.normal(0.0, 0.05, 3000))).astype(np.int64)
        block = np.arange(30).repeat(100)
        counts, buckets = bucket_counts(values, block, 30)
        low, high = interval(resampled_quantiles_us(counts, buckets, (0.5,), draw_weights(rng, [30], 400))[:, 0])
        covered += low <= 10_000 <= high
        single, used = bucket_counts(values, np.arange(3000) % 30, 30)
        low, high = interval(resampled_quantiles_us(single, used, (0.5,), draw_weights(rng, [30], 400))[:, 0])
        narrow += low <= 10_000 <= high
    assert covered >= 50
    assert narrow < covered - 15


def test_rounds_are_drawn_before_their_blocks() -> None:
    weights = draw_weights(np.random.default_rng(1), [10, 10, 10], 500)
    assert (weights.sum(axis=1) == 30).all()
    by_round = weights.reshape(500, 3, 10).sum(axis=2)
    assert set(np.unique(by_round)) == {0.0, 10.0, 20.0, 30.0}


def test_blocks_are_stretches_of_time() -> None:
    assert blocks_of(np.array([0.0, 0.1, 5.0, 9.9, 10.0]), 10).tolist() == [0, 0, 5, 9, 9]
    assert blocks_of(np.zeros(3)).tolist() == [0, 0, 0]


def test_what_misses_the_slo_is_paid_for_and_earns_nothing(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [row(0.0), row(3600.0 - 0.17, first_token_s=3610.0)])
    prices = Prices({"cpu": 0.5}, {"cpu": 2}, Slo())
    slo = Slo(ttft_s=1.0)
    (cost,) = cost_of(rows, slo, prices, {})
    assert cost["usd"] == pytest.approx(1.0)
    assert cost["usd_per_million_tokens"] == pytest.approx(1e6 / 208, rel=1e-4)
    assert cost["usd_per_million_tokens_at_slo"] == pytest.approx(1e6 / 104, rel=1e-4)
    (scraped,) = cost_of(rows, slo, prices, {"cpu": 0.25})
    assert scraped["usd"] == pytest.approx(0.25)


STUCK = FAILED | {"status": None, "error": "timed out", "end_s": 600.0, "output_tokens": 50}


def test_a_request_that_hangs_makes_the_others_no_fewer(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [row(0.2 * at, **(STUCK if at == 7 else {})) for at in range(300)])
    found = summarise(rows, Slo(), seed=1)
    for rate in (found["throughput"], found["goodput"]):
        assert rate["requests_per_s"] == pytest.approx(5.0, rel=0.01)
        assert rate["output_tokens_per_s"] == pytest.approx(4 * 5.0, rel=0.01)
    (cost,) = cost_of(rows, Slo(), Prices({"cpu": 3600.0}, {"cpu": 1}, Slo()), {})
    assert cost["usd"] == pytest.approx(60.0, rel=0.01)


def test_tokens_of_what_was_not_whole_count_in_no_rate_and_earn_nothing(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [row(0.0), row(9.0, outcome="cancelled", output_tokens=50), row(9.83, **STUCK), row(9.83)])
    assert summarise(rows, Slo(), seed=1)["throughput"]["output_tokens_per_s"] == pytest.approx(8 / 10.0)
    (cost,) = cost_of(rows, Slo(), Prices({"cpu": 1.0}, {"cpu": 1}, Slo()), {})
    assert cost["num_tokens"] == 208
    assert Side([rows], is_closed=True).per_block("tokens").sum() == 8


def test_what_a_pool_that_may_have_no_replica_cost_is_not_known_without_metrics(tmp_path: Path) -> None:
    prices = Prices({"cpu": 0.5}, {"cpu": 0}, Slo())
    (cost,) = cost_of(rows_of(tmp_path, [row(0.0)]), Slo(), prices, {})
    assert [cost[name] for name in cost if name.startswith("usd")] == [None] * 4
    assert "replicas.min of the config is 0" in cost["basis"]
    assert "not known" in _cost(cost)


def test_pools_are_priced_by_the_requests_that_each_served(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [row(0.0, pool="gpu"), row(1.0, pool="gpu")])
    gpu, cpu = cost_of(rows, Slo(), Prices({"gpu": 2.0, "cpu": 0.1}, {"gpu": 1, "cpu": 1}, Slo()), {})
    assert gpu["num_tokens"] == 208
    assert (cpu["num_tokens"], cpu["usd_per_million_tokens"]) == (0, None)


@pytest.mark.parametrize("text", ["ttft", "p99=3s", "ttft=fast", "objective=2", "objective=x", ""])
def test_what_is_no_slo_is_named(text: str) -> None:
    with pytest.raises(BenchError):
        parse_slo(text)


def test_a_file_that_holds_no_requests_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(BenchError, match=r"x\.jsonl.*not a request"):
        read_rows([tmp_path / "x.jsonl"])
    with pytest.raises(BenchError, match="cannot be read"):
        read_rows([tmp_path / "none.jsonl"])
