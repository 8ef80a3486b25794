"""Which replica serves a request."""

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.router.choice import Hold, Rules, ahead_s, choose
from serving.router.prediction import StepModel, prefill_tokens_per_s, tpot_s

RULES = Rules(tpot_slo_s=0.15)


@dataclass(slots=True)
class Replica:
    name: str = "r"
    is_ready: bool = True
    is_fallback: bool = False
    backlog_s: float = 0.0
    prefill_tokens_per_s: float = 8000.0
    tpot_s: float = 0.03
    num_running: int = 0
    num_free_slots: int = 100
    kv_free_tokens: int = 100_000


@dataclass(slots=True)
class Request:
    prompt_tokens: int = 1000
    expected_output_tokens: float = 100.0
    deadline_s: float = 5.0
    is_late: bool = False
    is_batch: bool = False
    home: str | None = None
    cached_tokens: int = 0
    allows_fallback: bool = True


def _cpu(name: str = "cpu", speed: float = 480.0, **changes: float) -> Replica:
    return replace(Replica(name, is_fallback=True, prefill_tokens_per_s=speed), **changes)  # type: ignore[arg-type]


def test_the_earliest_first_token_wins() -> None:
    slow = Replica("slow", backlog_s=0.2)
    fast = Replica("fast", backlog_s=0.1)
    for draw in (0.0, 0.6):
        assert choose(Request(), [slow, fast], 0.0, draw, RULES) is fast


def test_equal_promises_go_to_the_one_with_fewer_sequences_then_to_the_draw() -> None:
    busy, free = Replica("busy", num_running=9), Replica("free", num_running=2)
    assert choose(Request(), [busy, free], 0.0, 0.0, RULES) is free
    assert choose(Request(), [free, busy], 0.0, 0.0, RULES) is free
    one, two = Replica("one"), Replica("two")
    assert {choose(Request(), [one, two], 0.0, draw, RULES).name for draw in (0.0, 0.6)} == {"one", "two"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "closed",
    [
        Replica(backlog_s=0.5),
        Replica(num_free_slots=0),
        Replica(num_running=3, kv_free_tokens=500),
        Replica(num_running=30, tpot_s=0.2),
    ],
)
def test_a_replica_with_enough_to_do_lets_a_request_wait_in_the_gateway(closed: Replica) -> None:
    assert choose(Request(), [closed], 0.0, 0.0, RULES) is Hold.WAIT


def test_a_replica_that_is_not_ready_is_not_chosen() -> None:
    assert choose(Request(), [Replica(is_ready=False)], 0.0, 0.0, RULES) is Hold.WAIT
    assert choose(Request(), [], 0.0, 0.0, RULES) is Hold.WAIT


def test_a_conversation_goes_home_while_that_costs_little() -> None:
    home, other = Replica("home", backlog_s=0.2, num_running=5), Replica("other")
    request = Request(home="home", cached_tokens=900)
    assert choose(request, [home, other], 0.0, 0.0, RULES) is home
    assert choose(request, [other, home], 0.0, 0.0, RULES) is home
    home.backlog_s = 3.0
    assert choose(request, [home, other], 0.0, 0.0, RULES) is other
    home.backlog_s, home.num_free_slots = 0.1, 0
    assert choose(request, [home, other], 0.0, 0.0, RULES) is other
    strict = Rules(tpot_slo_s=0.15, max_affinity_delay_s=0.0)
    home.num_free_slots, home.backlog_s = 5, 0.24
    assert choose(Request(home="home"), [home, other], 0.0, 0.0, strict) is other


def test_a_prefix_that_saves_next_to_nothing_is_no_reason() -> None:
    home, other = Replica("home", num_running=7), Replica("other")
    assert choose(Request(home="home", cached_tokens=16), [home, other], 0.0, 0.0, RULES) is other
    assert choose(Request(home="home", cached_tokens=160), [home, other], 0.0, 0.0, RULES) is home


@pytest.mark.parametrize("full", [{"num_free_slots": 0}, {"kv_free_tokens": 500}, {"tpot_s": 0.16}])
def test_a_fallback_pool_stands_in_for_a_replica_that_is_full_until_too_late(full: dict[str, float]) -> None:
    """Of a hundred sequences one ends every 60 ms; of one, in 6 s."""
    gpu = replace(Replica("gpu", num_running=100), **full)  # type: ignore[arg-type]
    request = Request(deadline_s=4.0, expected_output_tokens=200.0)
    assert choose(request, [gpu, _cpu()], 0.0, 0.0, RULES) is Hold.WAIT
    gpu.num_running = 1
    assert choose(request, [gpu, _cpu()], 0.0, 0.0, RULES) == _cpu()


def test_those_who_wait_for_a_sequence_to_end_are_ahead_for_longer() -> None:
    gpu = Replica(num_running=50, tpot_s=0.05)
    assert ahead_s(8000, 10, 100.0, [gpu, _cpu()]) == 1.0
    gpu.num_free_slots = 4
    assert ahead_s(8000, 54, 100.0, [gpu, _cpu()]) == pytest.approx(50 * 100 * 0.05 / 50)
    assert ahead_s(8000, 54, 100.0, [_cpu(), replace(gpu, is_ready=False)]) == math.inf
    assert ahead_s(8000, 54, 100.0, [replace(gpu, num_running=0)]) == 1.0


def test_a_fallback_pool_stands_in_only_where_no_primary_replica_meets_the_deadline() -> None:
    gpu, cpu = Replica("gpu"), _cpu()
    assert choose(Request(), [gpu, cpu], 0.0, 0.0, RULES) is gpu
    gpu.backlog_s = 30.0
    assert choose(Request(), [gpu, cpu], 0.0, 0.0, RULES) is cpu
    assert choose(Request(), [cpu], 0.0, 0.0, RULES) is cpu


@pytest.mark.parametrize(
    ("request_", "cpu"),
    [
        (Request(allows_fallback=False), _cpu()),
        (Request(prompt_tokens=3000), _cpu()),
        (Request(), _cpu(tpot_s=0.2)),
        (Request(), _cpu(backlog_s=0.5)),
        (Request(), _cpu(num_free_slots=0)),
        (Request(), replace(_cpu(), is_ready=False)),
    ],
)
def test_a_fallback_pool_takes_only_what_it_can_finish_inside_the_slo(request_: Request, cpu: Replica) -> None:
    assert choose(request_, [Replica(backlog_s=30.0), cpu], 0.0, 0.0, RULES) is Hold.LATE
    assert choose(request_, [cpu], 0.0, 0.0, RULES) is Hold.WAIT  # a primary replica may still come


def test_the_sooner_of_two_fallback_replicas_is_taken() -> None:
    slow, fast = _cpu("slow", 300.0), _cpu("fast", 480.0)
    assert choose(Request(), [slow, fast], 0.0, 0.0, RULES) is fast
    assert choose(Request(), [fast, slow], 0.0, 0.0, RULES) is fast


def test_a_queue_ahead_counts() -> None:
    gpu, cpu = Replica("gpu"), _cpu()
    assert choose(Request(), [gpu, cpu], 0.0, 0.0, RULES, ahead_s=6.0) is cpu
    assert choose(Request(), [gpu], 0.0, 0.0, RULES, ahead_s=6.0) is gpu


def test_what_cannot_be_in_time_is_late_or_refused() -> None:
    full = [Replica(backlog_s=9.0)]
    shedding = Rules(tpot_slo_s=0.15, is_shedding=True)
    assert choose(Request(), full, 0.0, 0.0, RULES) is Hold.LATE
    assert choose(Request(), full, 0.0, 0.0, shedding) is Hold.REFUSE
    assert choose(Request(), [], 6.0, 0.0, RULES) is Hold.LATE
    assert choose(Request(is_batch=True), full, 9.0, 0.0, shedding) is Hold.WAIT


def test_a_late_request_takes_what_is_open_and_an_idle_fallback_replica_only_where_nothing_else_is_up() -> None:
    late = Request(is_late=True)
    gpu, cpu = Replica("gpu"), _cpu()
    assert choose(late, [gpu, cpu], 9.0, 0.0, RULES) is gpu
    gpu.backlog_s = 3.0
    assert choose(late, [gpu, cpu], 9.0, 0.0, RULES) is Hold.WAIT
    assert choose(late, [cpu], 9.0, 0.0, RULES) is cpu
    cpu.num_running = 1
    assert choose(late, [cpu], 9.0, 0.0, RULES) is Hold.WAIT
    assert choose(replace(late, allows_fallback=False), [_cpu()], 9.0, 0.0, RULES) is Hold.WAIT


_replicas = st.lists(
    st.builds(
        Replica,
        name=st.sampled_from("abcdef"),
        is_ready=st.booleans(),
        is_fallback=st.booleans(),
        backlog_s=st.floats(0.0, 10.0),
        num_running=st.integers(0, 50),
        num_free_slots=st.integers(-3, 10),
        tpot_s=st.floats(0.01, 0.3),
    ),
    max_size=12,
)


@given(
    replicas=_replicas,
    home=st.sampled_from([None, "a", "b"]),
    is_late=st.booleans(),
    draw=st.floats(0.0, 1.0, exclude_max=True),
)
def test_whoever_is_chosen_is_ready_has_a_slot_and_is_allowed(
    replicas: list[Replica], home: str | None, is_late: bool, draw: float
) -> None:
    request = Request(home=home, cached_tokens=500, is_late=is_late, allows_fallback=False)
    chosen = choose(request, replicas, 0.0, draw, RULES)
    if not isinstance(chosen, Hold):
        assert chosen.is_ready
        assert chosen.num_free_slots > 0
        assert not chosen.is_fallback
        assert chosen.backlog_s <= RULES.max_backlog_s


def test_predictions_follow_the_step_model() -> None:
    model = StepModel(0.011, 5e-5, 8e-8, 1e-4, 1024, 256, 420_000)
    assert prefill_tokens_per_s(model, 0, 0) == pytest.approx(1024 / (0.011 + 0.1024))
    assert tpot_s(model, 9, 10_000) == pytest.approx(0.011 + 10 * 5e-5 + 8e-4)
