"""Things that are killed. Last, because each test waits for Ray Serve to start another replica."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

import httpx
import openai
import pytest

from benchmarks import processes
from serving.lifecycle.processes import start_ticks
from tests.e2e.prompts import CAPITAL, COUNT_FOREVER, FOREVER
from tests.e2e.server import MODEL, Server, until

MAX_NOTICE_S = 1.0
NUM_STREAMS = 3

VICTIMS: dict[str, tuple[Callable[[Server], int], signal.Signals]] = {
    "engine, SIGKILL": (lambda server: server.engine_pids()[0], signal.SIGKILL),
    "engine, SIGTERM": (lambda server: server.engine_pids()[0], signal.SIGTERM),
    "replica, SIGKILL": (lambda server: int(server.replica()["pid"]), signal.SIGKILL),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_ends_streams_with_an_error_and_the_next_request_is_served(
    server: Server, client: openai.OpenAI, victim: str
) -> None:
    """Streams get an error frame within a second; a new replica comes; of the old one nothing is left."""
    server.until_ready()
    find, signal_number = VICTIMS[victim]
    old = server.replica()
    family = [old["pid"], *processes.children([old["pid"]])]
    born = {pid: start_ticks(pid) for pid in family}
    assert len(server.engine_pids()) == 1
    broken = server.metrics().value("ballast_streams_broken_total")
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(
                client.chat.completions.create(model=MODEL, messages=COUNT_FOREVER, stream=True, extra_body=FOREVER)
            )
            for _ in range(NUM_STREAMS)
        ]
        for stream in streams:
            next(iter(stream))
        os.kill(find(server), signal_number)
        killed_s = time.monotonic()
        for stream in streams:
            with pytest.raises(openai.APIError) as caught:
                for _ in stream:
                    pass
            assert caught.value.code == "engine_unavailable"
        assert time.monotonic() - killed_s < MAX_NOTICE_S
    server.until_ready(other_than=old["replica"])
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    assert answer.choices[0].message.content == "Paris"
    assert server.metrics().value("ballast_streams_broken_total") == broken + NUM_STREAMS
    until(lambda: not [pid for pid in family if start_ticks(pid) == born[pid] is not None], 10, "the old replica's end")


def test_a_request_during_an_outage_waits_for_the_new_replica_or_is_told_to_come_back(
    server: Server, http: httpx.Client
) -> None:
    """Never a connection that is closed without a word; health stays up, readiness says no."""
    old = server.until_ready()
    os.kill(server.engine_pids()[0], signal.SIGKILL)
    until(lambda: not server.status()["ready"], 5, "the gateway's notice")
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 503
    answer = http.post("/v1/chat/completions", json={"model": MODEL, "messages": CAPITAL, "temperature": 0})
    if answer.status_code == 503:
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "Paris"
    server.until_ready(other_than=old["replica"])
