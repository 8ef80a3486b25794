"""Faults under steady traffic: what is promised holds, and each prints its row of the table (also at the run's end).

The faults are those of ``python -m benchmarks.scenarios.faults``, with less time for each. Not again here is what is
proven elsewhere:

    F1, F2 (the process), F8    test_failover.py, with 32 streams at once, byte for byte
    a lone replica's death      test_failures.py
    F15, SIGTERM of a replica   the benchmark alone: it comes to the same as F2
    a killed `ballast up`       test_lifecycle.py
    F13, F14, F23 to F33        tests/gateway/test_faults.py, and F15 where time is up; F12, F22, F36 once more in
                                tests/gateway/test_failover.py, without Ray
"""

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.faults.engines import engine_hung, engine_killed, replica_killed, replica_terminated
from benchmarks.faults.fault import Fault, row_of
from benchmarks.faults.sites import stage
from benchmarks.faults.stage import QUICK, Stage
from benchmarks.scenarios.faults import FAULTS
from tests.e2e.table import ROWS

ELSEWHERE = (engine_killed, replica_killed, replica_terminated, engine_hung)
HERE = [fault for fault in FAULTS if fault.play not in ELSEWHERE]


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """One server at a time, for all faults that it can serve."""
    with stage(request.param, QUICK) as running:
        yield running


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("running", "fault"),
    [pytest.param(fault.site, fault, id=fault.id) for fault in HERE],
    indirect=["running"],
    scope="module",
)
def test_what_is_promised_holds(running: Stage, fault: Fault) -> None:
    """One sentence per promise is in the row; a row with one that does not hold fails."""
    outcome = asyncio.run(fault.play(running))
    row = row_of(fault, outcome)
    print(row)
    ROWS.append(row)
    assert not outcome.broken, row
