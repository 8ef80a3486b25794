"""What the autoscaler tells the gateways."""

import math
from dataclasses import replace

import pytest

from serving.protocol.board import DECIDED_WITHIN_S, STALE_S, Board, ModelBoard, PoolBoard

IDLE = PoolBoard(
    target=0, num_ready=0, num_starting=0, coming_s=None, cold_start_s=60.0, is_available=True, can_start=True,
    is_fallback=False, binding="slo", usd_per_hour=0.0, usage_usd_per_million_tokens=None,
    allocation_usd_per_million_tokens=2.5,
)  # fmt: skip
STARTING = replace(IDLE, target=1, num_starting=1, coming_s=40.0)
UP = replace(IDLE, target=1, num_ready=1)
NOW_S = 1.8e9


def board(**pools: PoolBoard) -> Board:
    return Board(NOW_S, {"demo": ModelBoard(pools, "slo", 1.5, 0.25)})


def test_what_was_written_is_read() -> None:
    written = board(gpu=STARTING, cpu=UP)
    assert Board.decode(written.encode()) == written


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"7", b"{}", b'{"at_s": 1}', b'{"at_s": 1, "models": 7}', b'{"at_s": "x", "models": {}}',
     b'{"at_s": 1, "models": {"demo": {}}}', b'{"at_s": 1, "models": {"demo": {"pools": []}}}',
     b'{"at_s": 1, "models": {"demo": {"pools": {"gpu": {"target": 1}}, "binding": "", "forecast_per_s": 1}}}'],
)  # fmt: skip
def test_what_is_no_board_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Board.decode(data)


def test_a_replica_that_starts_comes_nearer() -> None:
    told = board(gpu=STARTING)
    assert told.coming_s("demo", NOW_S) == 40.0
    assert told.coming_s("demo", NOW_S + 10.0) == 30.0
    assert board(gpu=replace(STARTING, coming_s=3.0)).coming_s("demo", NOW_S + 10.0) == 0.0


def test_where_none_starts_one_could() -> None:
    assert board(gpu=IDLE).coming_s("demo", NOW_S + 10.0) == DECIDED_WITHIN_S + 60.0


def test_the_soonest_pool_counts() -> None:
    fast = replace(IDLE, cold_start_s=5.0)
    assert board(gpu=STARTING, cpu=fast).coming_s("demo", NOW_S) == DECIDED_WITHIN_S + 5.0
    assert board(gpu=STARTING, cpu=IDLE).coming_s("demo", NOW_S) == 40.0


def test_a_fallback_pool_counts_only_for_who_may_use_it() -> None:
    told = board(gpu=IDLE, cpu=replace(IDLE, cold_start_s=5.0, is_fallback=True))
    assert told.coming_s("demo", NOW_S) == DECIDED_WITHIN_S + 5.0
    assert told.coming_s("demo", NOW_S, allows_fallback=False) == DECIDED_WITHIN_S + 60.0


def test_none_comes_of_a_pool_that_has_no_device() -> None:
    gone = {"is_available": False, "can_start": False}
    assert board(gpu=replace(IDLE, **gone)).coming_s("demo", NOW_S) is None
    assert board(gpu=replace(STARTING, **gone)).coming_s("demo", NOW_S) is None
    assert board().coming_s("demo", NOW_S) is None


def test_nobody_knows_what_an_old_board_or_none_of_the_model_says() -> None:
    told = board(gpu=STARTING)
    assert told.coming_s("demo", NOW_S + STALE_S) == 40.0 - STALE_S
    assert math.isnan(told.coming_s("demo", NOW_S + STALE_S + 0.1) or 0.0)
    assert math.isnan(told.coming_s("other", NOW_S) or 0.0)


def test_a_replica_that_only_the_autoscaler_sees_may_be_there_any_moment() -> None:
    """It has just come up, is silent for a moment, or has just died: whoever waits for it is not sent away as if it
    were a cold start away, whatever else is starting."""
    assert math.isnan(board(gpu=UP).coming_s("demo", NOW_S) or 0.0)
    assert math.isnan(board(gpu=replace(UP, num_starting=1, coming_s=170.0)).coming_s("demo", NOW_S) or 0.0)


def test_a_fallback_replica_that_is_up_does_not_mean_that_a_primary_one_comes() -> None:
    cpu = replace(UP, is_fallback=True, can_start=False)
    assert board(gpu=STARTING, cpu=cpu).coming_s("demo", NOW_S) == 40.0
    assert board(gpu=replace(IDLE, can_start=False), cpu=cpu).coming_s("demo", NOW_S) is None


def test_a_clock_that_was_set_back_makes_nothing_come_later() -> None:
    assert board(gpu=STARTING).coming_s("demo", NOW_S - 100.0) == 40.0
