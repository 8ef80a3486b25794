"""What is sent over real sockets, and what is recorded of it."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load.alarm import Alarm
from benchmarks.load.arrivals import steady
from benchmarks.load.drive import Drive, Manner
from benchmarks.load.lengths import Lengths
from benchmarks.load.mistake import BenchError
from benchmarks.load.null_server import Manners, NullServer
from benchmarks.load.prompts import Speech
from benchmarks.load.record import Recorder
from benchmarks.load.schedule import Workload, closed_schedule, open_schedule
from benchmarks.load.target import parse_target
from tests.benchmarks.conftest import Driven, start_null_server

SHORT = Workload(prompt=Lengths("fixed", 20), output=Lengths("fixed", 5))


async def test_every_planned_request_is_answered_whole_and_in_order(drive: Driven) -> None:
    rows = await drive(open_schedule(SHORT, steady(200.0, 0.5), "poisson", 1))
    assert sorted(row["index"] for row in rows) == list(range(len(rows)))
    for row in rows:
        assert (row["outcome"], row["status"], row["output_tokens"], len(row["itl_us"])) == ("ok", 200, 5, 4)
        assert row["request_id"].startswith("null-")
        order = [row[f"{name}_s"] for name in ("intended", "dispatched", "sent", "first_byte", "first_token", "end")]
        assert order == sorted(order)


async def test_a_closed_loop_keeps_its_clients_busy_and_no_more(drive: Driven) -> None:
    server = NullServer(Manners(first_s=0.005, num_slots=2))
    rows = await drive(closed_schedule(SHORT, 20, 1), manner=Manner(concurrency=2), server=server)
    assert len(rows) == 20
    starts = np.array([row["sent_s"] for row in rows])
    ends = np.array([row["end_s"] for row in rows])
    assert max(((starts <= at_s) & (ends > at_s)).sum() for at_s in starts) == 2


async def test_a_closed_loop_by_time_begins_its_sessions_again(drive: Driven) -> None:
    rows = await drive(closed_schedule(SHORT, 2, 1), manner=Manner(concurrency=2, span_s=0.1))
    assert len(rows) > 4
    assert len({row["index"] for row in rows}) == len(rows)


async def test_a_conversation_carries_what_was_said(drive: Driven) -> None:
    workload = Workload(prompt=Lengths("fixed", 20), output=Lengths("fixed", 5), turns=3)
    rows = await drive(closed_schedule(workload, 2, 1), manner=Manner(concurrency=1))
    assert [row["turn"] for row in rows] == [0, 1, 2, 0, 1, 2]
    for earlier, later in ((rows[0], rows[1]), (rows[1], rows[2])):
        assert later["prompt_tokens"] > earlier["prompt_tokens"] + 20, "the null server counts words"
        assert later["intended_s"] >= earlier["end_s"]


async def test_a_client_that_hangs_up_is_no_failure(drive: Driven) -> None:
    workload = Workload(prompt=Lengths("fixed", 5), output=Lengths("fixed", 400), cancel_share=1.0)
    rows = await drive(closed_schedule(workload, 5, 1), Manners(step_s=0.001), Manner(concurrency=5))
    assert {row["outcome"] for row in rows} == {"cancelled"}
    assert all(row["output_tokens"] < 400 for row in rows)


async def test_a_slow_reader_gets_all_of_it(drive: Driven) -> None:
    workload = Workload(prompt=Lengths("fixed", 5), output=Lengths("fixed", 1500), slow_share=1.0)
    rows = await drive(closed_schedule(workload, 2, 1), manner=Manner(concurrency=2))
    assert [(row["outcome"], row["output_tokens"], row["is_slow"]) for row in rows] == [("ok", 1500, True)] * 2


async def test_refusals_are_failures_with_their_status_and_id(drive: Driven) -> None:
    rows = await drive(closed_schedule(SHORT, 9, 1), Manners(refused_every=3), Manner(concurrency=1))
    failed = [row for row in rows if row["outcome"] == "error"]
    assert [(row["status"], row["request_id"]) for row in failed] == [(503, f"null-{each}") for each in (3, 6, 9)]
    assert failed[0]["error"] == "HTTP 503: overloaded: the line is full"


async def test_what_takes_too_long_is_given_up(drive: Driven) -> None:
    rows = await drive(closed_schedule(SHORT, 1, 1), Manners(first_s=30.0), Manner(concurrency=1, timeout_s=0.05))
    assert [(row["outcome"], row["error"]) for row in rows] == [("error", "no end within 0.05 s")]


async def test_a_server_that_is_not_there_is_an_error_of_each_request(tmp_path: Path) -> None:
    with (tmp_path / "rows").open("wb") as file:
        recorder = Recorder(file)
        drive = Drive(parse_target("http://127.0.0.1:1"), Speech("m", 1), Manner(concurrency=1), recorder)
        await drive.run(closed_schedule(SHORT, 2, 1), time.monotonic())
    assert (tmp_path / "rows").read_bytes().count(b"cannot connect") == 2


async def test_clients_of_a_closed_loop_do_not_storm_a_server_that_is_gone(tmp_path: Path) -> None:
    with (tmp_path / "rows").open("wb") as file:
        recorder = Recorder(file)
        manner = Manner(concurrency=2, span_s=0.5)
        drive = Drive(parse_target("http://127.0.0.1:1"), Speech("m", 1), manner, recorder)
        await drive.run(closed_schedule(SHORT, 1000, 1), time.monotonic())
    assert 2 <= (tmp_path / "rows").read_bytes().count(b"cannot connect") <= 12


async def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path: Path) -> None:
    server = NullServer(Manners(first_s=0.01, step_s=5.0))
    target = parse_target(f"http://127.0.0.1:{await server.listen()}")
    with (tmp_path / "rows").open("wb") as file:
        recorder = Recorder(file)
        drive = Drive(target, Speech("m", 1), Manner(), recorder)
        run = asyncio.create_task(
            drive.run(open_schedule(SHORT, steady(100.0, 600.0), "constant", 1), time.monotonic())
        )
        while recorder.progress.num_sent < 3:  # noqa: ASYNC110  (nothing announces it)
            await asyncio.sleep(0.001)
        drive.stop()
        await run
    assert (tmp_path / "rows").read_bytes().count(b'"outcome":"interrupted"') >= 3
    server.close()


async def test_coordinated_omission_shows_only_from_the_intended_start(drive: Driven) -> None:
    """A server that freezes for two seconds holds up a client with two connections. The requests that could not leave
    meanwhile have waited for it too; a clock that starts when they leave does not know."""
    schedule = open_schedule(SHORT, steady(100.0, 6.0), "constant", 1)
    manners = Manners(first_s=0.001, freeze_at_s=2.0, freeze_s=2.0)
    # In a process of its own: one that freezes would freeze its client.
    rows = await drive(schedule, manner=Manner(concurrency=2), server=_Elsewhere(manners))
    from_intended = np.array([row["first_token_s"] - row["intended_s"] for row in rows])
    service = np.array([row["first_token_s"] - row["sent_s"] for row in rows])
    assert len(rows) == 600
    assert np.quantile(from_intended, 0.99) > 1.8
    assert (service > 1.8).sum() <= 2, "only what was on its way noticed"
    assert np.quantile(service, 0.99) < 0.5 * np.quantile(from_intended, 0.99)


class _Elsewhere(NullServer):
    """The null server as its own command."""

    async def listen(self, port: int = 0, host: str = "127.0.0.1") -> int:
        self._process, found = await asyncio.to_thread(start_null_server, self.manners)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def test_an_alarm_rings_once_its_time_has_come() -> None:
    alarm = Alarm()
    before_s = time.monotonic()
    await alarm.wait_until(before_s + 0.0123)
    assert time.monotonic() >= before_s + 0.0123
    await alarm.wait_until(before_s)
    alarm.close()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com/openai/v1/", "https://api.example.com:443/openai/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_a_base_url_is_understood(url: str, found: str) -> None:
    assert parse_target(url).url == found


def test_an_ipv6_host_stands_in_brackets_in_its_header() -> None:
    assert b"\r\nhost: [::1]:8000\r\n" in parse_target("http://[::1]:8000").head("chat")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://h:port"])
def test_what_is_no_base_url_is_named(url: str) -> None:
    with pytest.raises(BenchError, match="URL"):
        parse_target(url)
