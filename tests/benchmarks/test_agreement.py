"""What two tools say of one server is put beside each other, and beside what that server is known to do."""

import pytest

from benchmarks import agreement
from benchmarks.load.mistake import BenchError
from benchmarks.load.null_server import Manners
from benchmarks.runs.prometheus import Reading
from benchmarks.runs.prometheus import read as read_metrics


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


def test_the_servers_word_of_each_tools_time_stands_beside() -> None:
    class Server:
        """Has answered one more request, of 40 ms, at each look."""

        num_looks = 0

        def scrape(self) -> Reading:
            self.num_looks += 1
            n = self.num_looks
            return read_metrics(
                "".join(
                    f'# TYPE {name} histogram\n{name}_bucket{{le="0.03"}} 0\n{name}_bucket{{le="0.05"}} {n}\n'
                    f'{name}_bucket{{le="+Inf"}} {n}\n{name}_sum {0.04 * n}\n{name}_count {n}\n'
                    for name in ("ballast_time_to_first_token_seconds", "ballast_request_duration_seconds")
                )
            )

    each = {
        who: agreement.with_server(Server(), lambda said=said: said)  # type: ignore[arg-type,misc]
        for who, said in round_of(10.0, 20.0).items()
    }
    rows = {row["metric"]: row for row in agreement.compare([each], None) if row["percentile"] == "p50"}
    assert rows["ttft"]["server_under_guidellm_ms"] == pytest.approx(40.0)
    assert rows["e2e"]["server_under_ballast_ms"] == pytest.approx(40.0)
    assert "server_under_ballast_ms" not in rows["tpot"]


def test_a_tool_that_fails_is_told_with_what_it_said() -> None:
    with pytest.raises(BenchError, match=r"(?s)guidellm has failed: sh -c .*no such profile"):
        agreement._run(["sh", "-c", "echo no such profile; exit 2"])
