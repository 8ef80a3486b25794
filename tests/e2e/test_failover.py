"""Two real engines: one is lost with streams open, and nobody who was being served can tell."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from benchmarks import processes
from tests.e2e.server import MODEL, Json, Server, running_server, until

NUM_STREAMS = 32
NUM_TOKENS = 400
WATCHDOG_S = 8.0
REPLACED_WITHIN_S = 200.0


@dataclass(frozen=True)
class Answer:
    """What one stream said, and what it says that it cost."""

    text: str
    finish_reason: str | None
    usage: Json | None


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime_dir = Path(tempfile.mkdtemp(prefix="ballast-"))
    state_dir = tmp_path_factory.mktemp("fleet")
    state_dir.chmod(0o700)
    with running_server(runtime_dir, state_dir, replicas={"min": 2, "max": 2}, watchdog_s=WATCHDOG_S) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(fleet: Server) -> list[Answer]:
    both_ready(fleet)
    return asyncio.run(stream_all(fleet))


async def stream_all(server: Server) -> list[Answer]:
    """Streams at temperature 0, and every third of drawn tokens with a seed, all at once."""
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=300
    ) as client:
        return await asyncio.gather(*(stream(client, index) for index in range(NUM_STREAMS)))


async def stream(client: openai.AsyncOpenAI, index: int) -> Answer:
    chunks = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Count from {index} to {index + 60}."}],
        temperature=0.7 if index % 3 == 2 else 0,
        seed=index,
        max_tokens=NUM_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "stream_interval": 1 + index % 2 * 3},
    )
    parts: list[str] = []
    finish_reason, usage = None, None
    async for chunk in chunks:
        usage = chunk.usage.model_dump() if chunk.usage else usage
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            parts.append(choice.delta.content or "")
    return Answer("".join(parts), finish_reason, usage)


def both_ready(server: Server) -> list[Json]:
    def ready() -> list[Json] | None:
        replicas = [replica for replica in server.status()["replicas"] if replica["ready"]]
        return replicas if len(replicas) == 2 else None

    return until(ready, REPLACED_WITHIN_S, "two ready replicas")


def num_decoded(replica: Json) -> float:
    """Tokens that it has generated so far, as it says itself."""
    return float(replica["load"]["work"][2])


def engine_of(replica: Json) -> int:
    [pid] = set(processes.named("EngineCore")) & set(processes.children([replica["pid"]]))
    return pid


LOSSES = {
    "engine, SIGKILL": (engine_of, signal.SIGKILL),
    "engine, SIGSTOP": (engine_of, signal.SIGSTOP),
    "replica, SIGKILL": (lambda replica: int(replica["pid"]), signal.SIGKILL),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("loss", LOSSES)
def test_no_stream_is_lost_and_none_differs(fleet: Server, undisturbed: list[Answer], loss: str) -> None:
    """Each stream ends with the text, the reason and the usage that it has undisturbed; a hang takes the watchdog's
    time, and then it is the same."""
    find, signal_number = LOSSES[loss]
    idle = {replica["replica"]: replica for replica in both_ready(fleet)}
    pids = {name: find(replica) for name, replica in idle.items()}

    def midst() -> str | None:
        """Who is in the midst of many streams. The client cannot tell: it falls behind the engines."""
        for replica in fleet.status()["replicas"]:
            name, num_streams = replica["replica"], replica["load"]["streams"]
            if num_streams >= 8 and num_decoded(replica) - num_decoded(idle[name]) > 10 * num_streams:
                return str(name)
        return None

    def lose_one() -> str:
        victim = until(midst, REPLACED_WITHIN_S, "a replica in the midst of many streams")
        os.kill(pids[victim], signal_number)
        return victim

    async def disturbed() -> tuple[list[Answer], str]:
        return await asyncio.gather(stream_all(fleet), asyncio.to_thread(lose_one))

    before = fleet.metrics()
    answers, victim = asyncio.run(disturbed())
    after = fleet.metrics()
    assert answers == undisturbed
    assert after.value("ballast_failovers_total", kind="continued") > before.value("ballast_failovers_total")
    assert after.value("ballast_requests_lost_total") == 0
    tokens = {"prompt_tokens": "prompt", "completion_tokens": "output"}
    for name, direction in tokens.items():
        counted = [at.value("ballast_tokens_total", direction=direction) for at in (before, after)]
        assert counted[1] - counted[0] == sum(answer.usage[name] for answer in answers if answer.usage)
    assert victim not in [replica["replica"] for replica in both_ready(fleet)]


def test_an_idle_engine_that_hangs_is_replaced_before_anyone_needs_it(fleet: Server) -> None:
    victim = both_ready(fleet)[0]
    os.kill(engine_of(victim), signal.SIGSTOP)
    until(
        lambda: victim["replica"] not in [replica["replica"] for replica in both_ready(fleet)],
        REPLACED_WITHIN_S,
        "another replica in place of the one that hangs",
    )
