"""What a replica promises, from its reports and from what this gateway has sent it."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.protocol.frames import Load
from serving.protocol.membership import ReplicaAddress
from serving.router.replica import LONG_STEP_S, PATIENCE, Replica
from tests.support.peers import IDLE

SPEED = (0.01, 1e-4, 1e-7, 1e-4)


@dataclass(slots=True)
class Link:
    """The connection: whether it is up, and how many streams this gateway has on it."""

    is_open: bool = True
    num_streams: int = 0


def replica(link: Link | None = None) -> Replica:
    address = ReplicaAddress("r0", "demo", "gpu", "unix:r0", version="v1", max_model_len=4096, pid=1)
    return Replica(address, link or Link())  # type: ignore[arg-type]


def load(**values: Any) -> Load:
    return IDLE | {"speed": SPEED, "max_num_seqs": 8, "max_num_batched_tokens": 1024} | values  # type: ignore[return-value]


def loaded(link: Link | None = None, **values: Any) -> Replica:
    known = replica(link)
    known.on_load(load(**values), 0.0)
    return known


def test_one_that_has_said_nothing_yet_takes_requests() -> None:
    known = replica()
    assert (known.name, known.is_ready, known.backlog_s) == ("r0", True, 0.0)
    assert known.num_free_slots > 0


def test_it_is_ready_while_it_is_connected_heard_of_and_not_leaving() -> None:
    link = Link()
    known = loaded(link)
    assert known.is_ready
    for attribute in ("is_silent", "has_dead_engine"):
        setattr(known, attribute, True)
        known.refresh()
        assert not known.is_ready
        setattr(known, attribute, False)
    link.is_open = False
    known.refresh()
    assert not known.is_ready
    link.is_open = True
    known.on_load(load(draining=True), 1.0)
    assert not known.is_ready


def test_a_report_ends_a_silence() -> None:
    known = loaded()
    known.is_silent = True
    known.on_load(load(), 9.0)
    assert known.is_ready
    assert known.load_at_s == 9.0


def test_speeds_are_those_it_has_measured() -> None:
    link = Link(num_streams=4)
    known = loaded(link, streams=4, kv_cache_usage=0.5, kv_tokens=40_000.0, kv_capacity_tokens=100_000)
    step_s = 0.01 + 4 * 1e-4 + 40_000 * 1e-7
    assert known.prefill_tokens_per_s == pytest.approx(1020 / (step_s + 1020 * 1e-4))
    assert known.tpot_s == pytest.approx(step_s + 1e-4)
    assert known.kv_free_tokens == 50_000


def test_what_this_gateway_has_sent_counts_before_the_replica_reports_it() -> None:
    link = Link()
    known = loaded(link)
    link.num_streams = 1
    known.begin(prompt_tokens=1000, kv_tokens=1200, now_s=0.0)
    assert known.backlog_s == pytest.approx(1000 / known.prefill_tokens_per_s)
    assert known.num_running == 1
    assert known.kv_free_tokens == 100_000 - 1200


def test_what_it_reports_of_ours_is_not_counted_twice() -> None:
    link = Link(num_streams=1)
    known = loaded(link)
    known.begin(1000, 1200, 0.0)
    known.on_load(load(streams=1, pending_prompt_tokens=1000, kv_cache_usage=0.01), 0.25)
    assert known.num_running == 1
    assert known.backlog_s == pytest.approx(1000 / known.prefill_tokens_per_s)
    assert known.kv_free_tokens == 99_000


def test_what_other_gateways_have_sent_counts_too() -> None:
    link = Link(num_streams=1)
    known = loaded(link)
    known.begin(1000, 1200, 0.0)
    known.on_load(load(streams=3, pending_prompt_tokens=5000), 0.25)
    assert known.num_running == 3
    assert known.backlog_s == pytest.approx(5000 / known.prefill_tokens_per_s)


def test_a_prompt_that_is_done_is_taken_off_once() -> None:
    known = loaded()
    one, other = known.begin(1000, 1000, 0.0), known.begin(500, 500, 0.0)
    one.end()
    one.end()
    assert known.backlog_s == pytest.approx(500 / known.prefill_tokens_per_s)
    other.end()
    assert known.backlog_s == 0.0


def test_a_prompt_counts_as_done_some_time_after_it_should_be() -> None:
    known = loaded()
    first = known.begin(1000, 1000, 5.0)
    alone_s = 1000 / known.prefill_tokens_per_s
    assert first.due_s == pytest.approx(5.0 + PATIENCE * alone_s)
    assert known.begin(1000, 1000, 5.0).due_s == pytest.approx(5.0 + PATIENCE * 2 * alone_s)


def test_a_few_more_than_run_at_once_are_let_in_so_that_the_next_is_there_already() -> None:
    link = Link()
    known = loaded(link, max_num_seqs=40)
    assert known.num_free_slots == 42
    link.num_streams = 45
    known.refresh()
    assert known.num_free_slots == -3
    assert loaded(max_num_seqs=1).num_free_slots == 2


def test_work_is_the_difference_of_two_reports() -> None:
    known = replica()
    assert known.on_load(load(work=(10.0, 500.0, 90.0, 7000.0, 3.0)), 0.0) is None, "it may have worked for days"
    assert known.on_load(load(work=(12.0, 500.0, 92.0, 7100.0, 3.5)), 0.25) == (2.0, 0.0, 2.0, 100.0, 0.5)
    assert known.on_load(load(work=(1.0, 0.0, 0.0, 0.0, 0.1)), 0.5) == (0.0, 0.0, 0.0, 0.0, 0.0)


@given(
    loads=st.lists(
        st.fixed_dictionaries(
            {
                "streams": st.integers(0, 500),
                "pending_prompt_tokens": st.integers(0, 10**6),
                "kv_cache_usage": st.floats(0.0, 1.0),
                "kv_tokens": st.floats(0.0, 1e6),
                "max_num_seqs": st.integers(1, 512),
                "max_num_batched_tokens": st.integers(1, 8192),
                "kv_capacity_tokens": st.integers(0, 10**6),
            }
        ),
        min_size=1,
    ),
    prompts=st.lists(st.integers(1, 10**6)),
)
def test_no_report_makes_a_promise_that_is_none(loads: list[dict[str, Any]], prompts: list[int]) -> None:
    link = Link()
    known = replica(link)
    begun = []
    for report in loads:
        known.on_load(load(**report), 0.0)
        begun += [known.begin(prompt, prompt, 0.0) for prompt in prompts[:3]]
        link.num_streams = len(begun)
        known.refresh()
        assert known.backlog_s >= 0.0
        assert known.prefill_tokens_per_s > 0.0
        assert known.tpot_s > 0.0
        assert known.num_running >= len(begun)
    for prefill in begun:
        prefill.end()
    known.on_load(load(), 1.0)
    assert known.backlog_s == 0.0


def test_one_that_stands_still_promises_nothing_soon() -> None:
    stuck, slow, well = loaded(standstill_s=5.0), loaded(standstill_s=LONG_STEP_S), loaded()
    assert stuck.backlog_s == 5.0 - LONG_STEP_S
    assert slow.backlog_s == well.backlog_s == 0.0, "a step may take a while"
    stuck.on_load(load(standstill_s=0.0), 1.0)
    assert stuck.backlog_s == 0.0
