"""What two tools say of one server is put beside each other, and beside what that server is known to do."""

import pytest

from benchmarks import agreement
from benchmarks.load.mistake import BenchError
from benchmarks.load.null_server import Manners


def round_of(ours_ms: float, theirs_ms: float) -> dict[str, dict[str, dict[str, float]]]:
    return {
        who: {name: dict.fromkeys(agreement.POINTS, value) for name in agreement.OURS}
        for who, value in (("ballast", ours_ms), ("guidellm", theirs_ms))
    }


def test_without_jitter_what_is_known_is_exact() -> None:
    found = agreement.known(Manners(first_s=0.04, step_s=0.01))
    assert found["ttft"]["p50"] == pytest.approx(40.0)
    assert found["tpot"]["p99"] == pytest.approx(10.0)
    assert found["e2e"]["p90"] == pytest.approx(40.0 + 31 * 10.0)


def test_jitter_spreads_the_first_token_more_than_the_mean_of_many_gaps() -> None:
    found = agreement.known(Manners(first_s=0.04, step_s=0.01, jitter=0.3))
    assert found["ttft"]["p99"] / found["ttft"]["p50"] == pytest.approx(2.0, rel=0.05)  # exp(0.3 * 2.326)
    assert found["tpot"]["p99"] / found["tpot"]["p50"] < 1.2


def test_rows_are_medians_over_rounds() -> None:
    rounds = [round_of(10.0, 20.0), round_of(12.0, 24.0), round_of(90.0, 25.0)]
    rows = list(agreement.compare(rounds, None))
    assert len(rows) == len(agreement.OURS) * len(agreement.POINTS)
    assert {(row["ballast_ms"], row["guidellm_ms"], row["ratio"], row["server_ms"]) for row in rows} == {
        (12.0, 24.0, 0.5, None)
    }


def test_a_tool_that_fails_is_told_with_what_it_said() -> None:
    with pytest.raises(BenchError, match=r"(?s)guidellm has failed: sh -c .*no such profile"):
        agreement._run(["sh", "-c", "echo no such profile; exit 2"])
