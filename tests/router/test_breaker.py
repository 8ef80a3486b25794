"""A replica that fails again and again is left alone, then tried with one request."""

from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ReplicaLost, ReplicaSilent
from serving.router.breaker import FIRST_PAUSE_S, MAX_PAUSE_S, NUM_FAILURES, Breaker


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(NUM_FAILURES):
        breaker.on_sent()
        breaker.on_failure(now_s)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(NUM_FAILURES - 1):
        breaker.on_failure(0.0)
        assert breaker.allows(0.0)
    breaker.on_failure(0.0)
    assert not breaker.allows(0.0)


def test_one_event_counts_once_however_many_streams_it_broke() -> None:
    breaker, lost = Breaker(), ReplicaLost("the connection")
    for _ in range(20):
        breaker.on_failure(0.0, lost)
    assert breaker.num_failures == 1
    breaker.on_failure(0.0, ReplicaLost("the next one"))
    assert breaker.num_failures == 2


def test_what_was_sent_before_it_opened_does_not_keep_it_open() -> None:
    breaker = opened()
    for _ in range(20):
        breaker.on_failure(FIRST_PAUSE_S / 2)
    assert breaker.allows(FIRST_PAUSE_S)


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.on_failure(0.0)
        breaker.on_success(is_probe=False)
    assert breaker.allows(0.0)


def test_half_open_it_lets_one_request_through_and_its_success_closes_it() -> None:
    breaker = opened()
    assert breaker.allows(FIRST_PAUSE_S)
    assert breaker.on_sent()
    assert not breaker.allows(FIRST_PAUSE_S), "one probe at a time"
    breaker.on_success(is_probe=True)
    assert breaker.allows(FIRST_PAUSE_S)


def test_a_success_while_it_is_open_leaves_it_as_new() -> None:
    """It is asked all the same where there is no other replica."""
    breaker = opened()
    for _ in range(5):
        breaker.on_failure(breaker.open_until_s)
    assert breaker.on_sent()
    breaker.on_success(is_probe=True)
    now_s = breaker.open_until_s
    for _ in range(NUM_FAILURES):
        assert breaker.allows(now_s)
        breaker.on_failure(now_s)
    assert not breaker.allows(now_s)
    assert breaker.allows(now_s + FIRST_PAUSE_S)


def test_it_says_whether_answers_failed_or_never_came() -> None:
    breaker = Breaker()
    breaker.on_failure(0.0, ReplicaSilent("nothing for 300 s"))
    assert breaker.is_by_silence
    breaker.on_failure(0.0, ReplicaLost("the connection"))
    assert not breaker.is_by_silence


def test_a_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    breaker, now_s, pauses = opened(), 0.0, []
    for _ in range(8):
        now_s = breaker.open_until_s
        breaker.on_sent()
        breaker.on_failure(now_s)
        pauses.append(breaker.open_until_s - now_s)
    assert pauses[0] == 2 * FIRST_PAUSE_S
    assert pauses[-1] == MAX_PAUSE_S
    assert pauses == sorted(pauses)


def test_a_probe_whose_client_left_leaves_room_for_the_next() -> None:
    breaker = opened()
    breaker.on_dropped(is_probe=breaker.on_sent())
    assert breaker.allows(FIRST_PAUSE_S)


@given(st.lists(st.sampled_from(["sent", "answer", "success", "failure", "dropped"]), max_size=60), st.data())
def test_it_never_stays_shut(events: list[str], data: st.DataObject) -> None:
    breaker, under_way = Breaker(), list[bool]()
    for now_s, event in enumerate(events):
        if event == "sent":
            if breaker.allows(now_s):
                under_way.append(breaker.on_sent())
        elif under_way:
            is_probe = under_way[index := data.draw(st.integers(0, len(under_way) - 1))]
            if event == "failure":
                breaker.on_failure(float(now_s))
            else:
                getattr(breaker, f"on_{event}")(is_probe=is_probe)
            if event != "answer":
                del under_way[index]
    for is_probe in under_way:
        breaker.on_dropped(is_probe=is_probe)
    assert breaker.allows(len(events) + MAX_PAUSE_S)


def test_a_probe_whose_answer_has_begun_closes_it_however_long_the_answer_is() -> None:
    breaker = opened()
    breaker.on_answer(is_probe=breaker.on_sent())
    assert breaker.allows(FIRST_PAUSE_S)


def test_the_answer_to_what_was_sent_before_it_opened_closes_nothing() -> None:
    breaker = opened()
    breaker.on_answer(is_probe=False)
    breaker.on_success(is_probe=False)
    assert not breaker.allows(0.0)


def test_only_the_probe_makes_room_for_another_one() -> None:
    breaker = opened()
    breaker.on_sent()
    breaker.on_dropped(is_probe=False)
    breaker.on_success(is_probe=False)
    assert not breaker.allows(FIRST_PAUSE_S)
