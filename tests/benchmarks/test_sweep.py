"""The search finds the rate that it should, says how sure it is, and trusts no round that measured the generator."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.runs import sweep
from benchmarks.runs.document import read
from benchmarks.runs.intervals import NUM_RESAMPLES
from benchmarks.runs.knee import Point, highest_rate, knee, next_rate, non_increasing
from benchmarks.runs.round import Round
from benchmarks.runs.summary import summarise
from serving.cli import main
from tests.benchmarks.conftest import GENEROUS
from tests.benchmarks.test_rows import row, rows_of


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def point(rate_per_s: float, share: float, answered_per_s: float | None = None, spread: float = 0.0) -> Point:
    drawn = np.clip(share + spread * rng().normal(size=NUM_RESAMPLES), 0.0, 1.0)
    return Point(rate_per_s, share, drawn, rate_per_s if answered_per_s is None else answered_per_s)


def share_at(rate_per_s: float, capacity_per_s: float) -> float:
    """All is well below nine tenths of the capacity; from there on more and more is late."""
    return 1.0 / (1.0 + math.exp(40.0 * (math.log(rate_per_s) - math.log(capacity_per_s))))


@pytest.mark.parametrize("capacity_per_s", [0.3, 17.0, 900.0])
@pytest.mark.parametrize("start_per_s", [1.0, 50.0])
def test_the_search_closes_in_on_the_edge(capacity_per_s: float, start_per_s: float) -> None:
    points: list[Point] = []
    while (rate_per_s := next_rate(points, 0.99, start_per_s, 0.05)) is not None:
        points.append(point(rate_per_s, share_at(rate_per_s, capacity_per_s)))
        assert len(points) < 20
    edge_per_s = capacity_per_s * math.exp(-math.log(99.0) / 40.0)
    found = highest_rate(points, 0.99, rng())
    assert found.value == pytest.approx(edge_per_s, rel=0.05)


def test_the_interval_holds_the_edge_and_is_wider_for_noisier_rounds() -> None:
    def estimate(spread: float) -> tuple[float, float, float]:
        shares = {8.0: 0.999, 9.0: 0.995, 10.0: 0.985, 12.0: 0.9}
        points = [point(rate, share, spread=spread) for rate, share in shares.items() for _ in range(3)]
        found = highest_rate(points, 0.99, rng())
        return found.value, found.low, found.high

    value, low, high = estimate(0.002)
    assert low < value < high
    _, wider_low, wider_high = estimate(0.01)
    assert wider_high - wider_low > high - low


def test_an_edge_that_was_not_reached_is_infinite_or_nothing() -> None:
    assert highest_rate([point(1.0, 1.0), point(2.0, 1.0)], 0.99, rng()).value == math.inf
    assert highest_rate([point(1.0, 0.5)], 0.99, rng()).value == 0.0


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 5)), min_size=1, max_size=12))
def test_pooling_falls_keeps_the_mean_and_leaves_falling_values_alone(values: list[tuple[float, int]]) -> None:
    shares, counts = (np.array(column, dtype=float) for column in zip(*values, strict=True))
    fitted = non_increasing(shares, counts)
    assert (np.diff(fitted) <= 1e-12).all()
    assert np.average(fitted, weights=counts) == pytest.approx(np.average(shares, weights=counts))
    falling = np.sort(shares)[::-1]
    assert non_increasing(falling, counts).tolist() == falling.tolist()


def test_the_knee_is_where_throughput_stands_still() -> None:
    rates = (5.0, 10.0, 20.0, 40.0, 80.0)
    points = [point(rate, 1.0, min(rate, 23.0) * factor) for rate in rates for factor in (0.98, 1.02)]
    found = knee(points, rng())
    assert found.value == pytest.approx(23.0, rel=0.03)
    assert found.low <= 23.0 <= found.high


Fake = Callable[..., Round]


@pytest.fixture
def fake_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Fake], None]:
    return lambda fake: monkeypatch.setattr(sweep, "run_round", fake)


def fake_round(folder: Path, plan: Any, number: int, rate_per_s: float, complaint: str | None = None) -> Round:
    """100 requests, of which more are late the more there are."""
    late = round(100 * (1.0 - share_at(rate_per_s, 20.0)))
    rows = rows_of(folder, [row(0.01 * at, first_token_s=0.01 * at + (9.0 if at < late else 0.1)) for at in range(100)])
    document = {
        "round": number, "rate_per_s": rate_per_s, "seed": number, "generator": {"complaint": complaint},
        "timeline": [], "server": {}, "files": [], **summarise(rows, plan.slo, number),
    }  # fmt: skip
    return Round(document, rows, complaint, is_interrupted=False)


SWEEP = ("--slo", "ttft=1s,objective=0.95", "--start-rate", "2", "--duration", "1s")


def test_a_sweep_repeats_its_edge_and_writes_what_it_found(
    url: str, tmp_path: Path, fake_rounds: Callable[[Fake], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_rounds(lambda plan, folder, number, rate, watch: fake_round(tmp_path, plan, number, rate))
    out = tmp_path / "run"
    assert main(["bench", "sweep", "--url", url, *SWEEP, "--rounds", "3", "--out", str(out)]) == 0
    assert "hold the SLO (95 % CI" in capsys.readouterr().out
    document = read(out).document
    found = document["sweep"]["highest_rate_in_slo_per_s"]
    assert found["value"] == pytest.approx(20.0 * math.exp(-math.log(19.0) / 40.0), rel=0.05)
    rates = [each["rate_per_s"] for each in document["rounds"]]
    assert sorted(rates.count(rate) for rate in set(rates))[-2:] == [3, 3]


def test_each_turn_of_a_conversation_counts_as_a_request(
    url: str, tmp_path: Path, fake_rounds: Callable[[Fake], None]
) -> None:
    def of_conversations(plan: Any, folder: Path, number: int, per_s: float, watch: object) -> Round:
        found = fake_round(tmp_path, plan, number, 4.0 * per_s)
        return replace(found, document=found.document | {"rate_per_s": per_s})

    fake_rounds(of_conversations)
    out = tmp_path / "run"
    assert main(["bench", "sweep", "--url", url, *SWEEP, "--turns", "4", "--rounds", "1", "--out", str(out)]) == 0
    found = read(out).document["sweep"]["highest_rate_in_slo_per_s"]
    assert found["value"] == pytest.approx(20.0 * math.exp(-math.log(19.0) / 40.0), rel=0.05)


def test_a_round_that_measured_the_generator_is_put_aside_and_repeated(
    url: str, tmp_path: Path, fake_rounds: Callable[[Fake], None], capsys: pytest.CaptureFixture[str]
) -> None:
    complaints = iter(["the load generator was the bottleneck"])
    fake_rounds(
        lambda plan, folder, number, rate, watch: fake_round(tmp_path, plan, number, rate, next(complaints, None))
    )
    out = tmp_path / "run"
    assert main(["bench", "sweep", "--url", url, *SWEEP, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["discarded_rounds"]) == 1
    assert document["status"] == "complete"


def test_a_generator_that_is_always_too_slow_ends_the_search(
    url: str, tmp_path: Path, fake_rounds: Callable[[Fake], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_rounds(lambda plan, folder, number, rate, watch: fake_round(tmp_path, plan, number, rate, "too slow"))
    assert main(["bench", "sweep", "--url", url, *SWEEP, "--out", str(tmp_path / "run")]) == 3
    assert "too slow" in capsys.readouterr().err


def test_ctrl_c_ends_the_search_also_where_the_generator_was_late(
    url: str, tmp_path: Path, fake_rounds: Callable[[Fake], None]
) -> None:
    def interrupted(plan: Any, folder: Path, number: int, rate: float, watch: object) -> Round:
        return replace(fake_round(tmp_path, plan, number, rate, "too slow"), is_interrupted=True)

    fake_rounds(interrupted)
    assert main(["bench", "sweep", "--url", url, *SWEEP, "--out", str(tmp_path / "run")]) == 130
    document = read(tmp_path / "run").document
    assert (len(document["rounds"]), document["discarded_rounds"]) == (1, [])


def test_no_rate_that_holds_has_its_exit_code(
    url: str, tmp_path: Path, fake_rounds: Callable[[Fake], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_rounds(lambda plan, folder, number, rate, watch: fake_round(tmp_path, plan, number, 1000.0 + rate))
    assert main(["bench", "sweep", "--url", url, *SWEEP, "--max-rounds", "3", "--out", str(tmp_path / "run")]) == 1
    assert "no rate that was tried holds the SLO" in capsys.readouterr().out


def test_a_sweep_over_real_sockets_stops_at_the_highest_rate_allowed(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slo = (
        "--slo",
        "ttft=1h,objective=0.5",
        "--start-rate",
        "20",
        "--max-rate",
        "40",
        "--duration",
        "1s",
        "--rounds",
        "1",
    )
    assert main(["bench", "sweep", "--url", url, *GENEROUS, *slo, "--out", str(tmp_path / "run")]) == 0
    assert "every rate that was tried holds the SLO" in capsys.readouterr().out
    assert [each["rate_per_s"] for each in read(tmp_path / "run").document["rounds"]] == [20.0, 40.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start-rate", "1"), "nothing to hold"),
        (("--slo", "ttft=1s", "--start-rate", "0"), "--start-rate"),
        (("--slo", "ttft=1s", "--start-rate", "9", "--max-rate", "2"), "--max-rate"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    url: str, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "sweep", "--url", url, *arguments]) == 2
    assert words in capsys.readouterr().err
