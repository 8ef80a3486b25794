"""The scenarios' driver sends what is due, when it is due, and says what became of it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from benchmarks.load.answer import Answer
from benchmarks.load.client import Connection
from benchmarks.load.null_server import Manners, NullServer
from benchmarks.load.traffic import Driver, Due, Mark, Run, Sent, percentile, poisson


@pytest.fixture
async def server() -> AsyncIterator[NullServer]:
    """Every third request gets a 503."""
    server = NullServer(Manners(first_s=0.02, step_s=0.005, refused_every=3))
    yield server
    server.close()


async def test_answers_and_refusals_are_told_apart(server: NullServer) -> None:
    driver = Driver(await server.listen(), "null", keeps_text=True)
    run = await driver.drive([Due(0.02 * number, f"prompt {number}", 4) for number in range(6)])
    assert [sent.is_whole for sent in run.sent].count(True) == 4
    for sent in run.sent:
        if sent.is_whole:
            assert sent.text == "word word word word "
            assert sent.due.at_s + 0.02 <= sent.first_s <= sent.end_s
        else:
            assert (sent.status, sent.retry_after_s) == (503, 1.0)
            assert sent.error == "HTTP 503: overloaded: the line is full"
        assert sent.request_id.startswith("null-")


async def test_token_ids_are_sent_as_they_are(server: NullServer) -> None:
    driver = Driver(await server.listen(), "null", keeps_text=True)
    sent = await driver.send(Due(0.0, (1, 2, 3), 2))
    assert sent.text == "word word "


async def test_nobody_there_is_an_error_of_the_connection(server: NullServer) -> None:
    port = await server.listen()
    server.close()
    sent = await Driver(port, "null").send(Due(0.0, "hello", 1))
    assert "connect" in str(sent.error)
    assert sent.status == 0


async def test_a_connection_that_is_lost_before_it_is_used_ends_the_request() -> None:
    connection = Connection()
    connection.connection_made(asyncio.Transport())
    connection.connection_lost(None)
    answer = Answer()
    await connection.exchange(b"", answer)
    assert answer.problem() == "connection lost: closed by the server"


def test_arrivals_have_the_rate_of_each_phase() -> None:
    due = poisson([(100.0, 4.0), (50.0, 0.0), (100.0, 8.0)], 5, seed=1)
    times_s = [each.at_s for each in due]
    assert times_s == sorted(times_s)
    assert not any(100.0 <= at_s < 150.0 for at_s in times_s)
    assert sum(at_s < 100.0 for at_s in times_s) == pytest.approx(400, rel=0.15)
    assert sum(at_s >= 150.0 for at_s in times_s) == pytest.approx(800, rel=0.15)
    assert len({each.prompt for each in due}) == len(due)


def answered(due_s: float, first_s: float) -> Sent:
    return Sent(Due(due_s, "hello", 1), end_s=first_s + 1.0, first_s=first_s, status=200, error=None)


def test_who_was_waiting_when_it_happened_waits_longest_of_all() -> None:
    sent = [answered(1.0, 1.1), answered(9.0, 9.5), answered(9.9, 17.9), answered(11.0, 11.2)]
    (found,) = Run(sent, [Mark(10.0, "kill")]).effects(window_s=30.0, slo_ttft_s=1.0)
    assert (found.ttft_max_after_s, found.ttft_p50_after_s) == (8.0, 0.2)


def test_a_percentile_is_the_value_of_the_nearest_rank() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.0, 0.07, 0.5, 0.99, 0.991, 1.0)] == [1, 7, 50, 99, 100, 100]
    assert percentile([3.0], 0.5) == 3.0
