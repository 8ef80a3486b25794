"""When a fault is over, and whom it has hit, for outages whose length is known."""

from pathlib import Path

import pytest

from benchmarks.runs.recovery import effects
from benchmarks.runs.slo import Slo
from tests.benchmarks.test_rows import FAILED, row, rows_of

EVERY_S = 0.25
SLO = Slo(ttft_s=0.5)


def slow(at_s: float) -> dict[str, object]:
    return row(at_s, first_token_s=at_s + 2.0, last_token_s=at_s + 2.06, end_s=at_s + 2.1)


def steady(tmp_path: Path, span_s: float, *outages: tuple[float, float], chance_s: tuple[float, ...] = ()):  # type: ignore[no-untyped-def]
    """A request every quarter of a second; late ones in each outage, failed ones at ``chance_s``."""
    rows = []
    for number in range(int(span_s / EVERY_S)):
        at_s = number * EVERY_S
        if at_s in chance_s:
            rows.append(row(at_s, **FAILED))
        else:
            rows.append(slow(at_s) if any(begin_s <= at_s < end_s for begin_s, end_s in outages) else row(at_s))
    return rows_of(tmp_path, rows)


def test_an_outage_is_over_with_its_last_late_request(tmp_path: Path) -> None:
    (found,) = effects(steady(tmp_path, 40.0, (10.0, 15.0)), SLO, [9.95])
    assert found.recovery_s == pytest.approx(14.75 - 9.95)
    assert (found.before["share_in_slo"], found.during["share_in_slo"], found.after["share_in_slo"]) == (1.0, 0.0, 1.0)
    assert found.during["ttft_max_ms"] == pytest.approx(2000.0)
    assert found.before["ttft_p50_ms"] == pytest.approx(100.0)


def test_a_fault_that_nobody_noticed_took_no_time(tmp_path: Path) -> None:
    (found,) = effects(steady(tmp_path, 40.0), SLO, [10.0])
    assert found.recovery_s == 0.0
    assert found.after["share_in_slo"] == 1.0


def test_a_miss_by_chance_long_after_is_not_the_faults(tmp_path: Path) -> None:
    rows = steady(tmp_path, 200.0, (10.0, 12.0), chance_s=(3.0, 7.0, 120.0))
    (found,) = effects(rows, SLO, [9.95])
    assert found.recovery_s == pytest.approx(11.75 - 9.95)
    assert found.after["num_error"] == 1


def test_an_outage_that_goes_on_has_no_recovery(tmp_path: Path) -> None:
    (found,) = effects(steady(tmp_path, 20.0, (10.0, 99.0)), SLO, [10.0])
    assert found.recovery_s is None
    assert found.why_unknown == "more was missed than before to the end of what follows it"
    assert found.after["share_in_slo"] is None


def test_without_anything_before_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    (found,) = effects(steady(tmp_path, 20.0), SLO, [0.6])
    assert found.recovery_s is None
    assert "too few requests before it" in str(found.why_unknown)


def test_where_next_to_nothing_was_seen_after_it_there_is_no_recovery(tmp_path: Path) -> None:
    (found,) = effects(steady(tmp_path, 20.0), SLO, [19.0])
    assert (found.recovery_s, found.why_unknown) == (None, "too few requests after it to tell")


def test_each_mark_has_what_lies_between_it_and_the_next(tmp_path: Path) -> None:
    first, second = effects(steady(tmp_path, 60.0, (10.0, 13.0), (30.0, 36.0)), SLO, [9.95, 29.95])
    assert first.recovery_s == pytest.approx(12.75 - 9.95)
    assert second.recovery_s == pytest.approx(35.75 - 29.95)
    assert second.before["share_in_slo"] == 1.0  # from the first one's recovery on


def test_a_request_under_way_counts_with_the_mark_that_hit_it(tmp_path: Path) -> None:
    rows = [row(EVERY_S * number) for number in range(160)]
    rows.append(row(8.1, **FAILED | {"end_s": 20.05}))
    found = effects(rows_of(tmp_path, rows), SLO, [10.0, 20.0])
    assert [effect.during["num_error"] + effect.after["num_error"] for effect in found] == [0, 1]
    assert found[0].recovery_s == 0.0
