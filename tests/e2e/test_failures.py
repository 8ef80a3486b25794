"""Things that are killed. Last, because each test waits for Ray Serve to start another replica."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from benchmarks import processes
from serving.lifecycle.processes import processes_of, start_ticks
from tests.e2e.prompts import CAPITAL, FOREVER
from tests.e2e.server import MODEL, Server, until

MAX_NOTICE_S = 1.0
NUM_STREAMS = 3


def process_of(server: Server, name: str) -> int:
    [pid] = set(processes.named(name)) & processes_of(server.runtime_dir)
    return pid


VICTIMS: dict[str, tuple[Callable[[Server], int], signal.Signals]] = {
    "engine, SIGKILL": (lambda server: server.engine_pids()[0], signal.SIGKILL),
    "engine, SIGTERM": (lambda server: server.engine_pids()[0], signal.SIGTERM),
    "replica, SIGKILL": (lambda server: int(server.replica()["pid"]), signal.SIGKILL),
    "Ray's actor, SIGKILL": (lambda server: process_of(server, f"ServeReplica:ballast:{MODEL}"), signal.SIGKILL),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_ends_streams_with_an_error_and_the_next_request_is_served(
    server: Server, client: openai.OpenAI, http: httpx.Client, victim: str
) -> None:
    """Streams get an error frame within a second, requests that come too early wait or are told when to come back, a
    new replica takes over, and of the old one no process is left."""
    old = server.until_ready()
    find, signal_number = VICTIMS[victim]
    family = {pid: start_ticks(pid) for pid in (old["pid"], *processes.children([old["pid"]]))}
    assert len(server.engine_pids()) == 1
    broken = server.metrics().value("ballast_streams_broken_total")
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(
                client.chat.completions.create(
                    model=MODEL, messages=count_forever(victim), stream=True, extra_body=FOREVER
                )
            )
            for _ in range(NUM_STREAMS)
        ]
        for stream in streams:
            next(stream)
        os.kill(find(server), signal_number)
        killed_s = time.monotonic()
        for stream in streams:
            with pytest.raises(openai.APIError) as caught:
                for _ in stream:
                    pass
            assert caught.value.code == "engine_unavailable"
        assert time.monotonic() - killed_s < MAX_NOTICE_S
    assert server.metrics().value("ballast_streams_broken_total") == broken + NUM_STREAMS
    check_outage(server, http)
    server.until_ready(other_than=old["replica"])
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    assert answer.choices[0].message.content == "Paris"
    until(lambda: not [pid for pid, born in family.items() if start_ticks(pid) == born], 10, "the old replica's end")


def count_forever(victim: str) -> list[ChatCompletionMessageParam]:
    """Another prompt for each victim: what was in flight on two engines that died is not taken a third time."""
    return [{"role": "user", "content": f"Count from {list(VICTIMS).index(victim)} to 200."}]


def check_outage(server: Server, http: httpx.Client) -> None:
    """Without a replica the gateway lives, is not ready, and lets nobody go without an answer."""
    until(lambda: not server.status()["ready"], 5, "the gateway's notice")
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 503
    answer = http.post("/v1/chat/completions", json={"model": MODEL, "messages": CAPITAL, "temperature": 0})
    if answer.status_code == 503:
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "Paris"


@pytest.mark.timeout(400)
def test_a_replica_does_not_need_the_zygote_that_it_was_forked_from(server: Server, client: openai.OpenAI) -> None:
    """What runs goes on, and the next replica starts another zygote."""
    old, zygote = server.until_ready(), process_of(server, "ballast-zygote")
    stream = client.chat.completions.create(model=MODEL, messages=CAPITAL, stream=True, temperature=0)
    next(stream)
    os.kill(zygote, signal.SIGKILL)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).endswith("Paris")
    os.kill(int(old["pid"]), signal.SIGKILL)
    server.until_ready(other_than=old["replica"])
    assert process_of(server, "ballast-zygote") != zygote
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    assert answer.choices[0].message.content == "Paris"
