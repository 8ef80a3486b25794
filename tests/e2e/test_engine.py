"""What stock vLLM gets wrong on a CPU, and what a client that leaves must set free."""

import asyncio
import json
import time

import httpx
import openai

from tests.e2e.prompts import COUNT_FOREVER, FOREVER
from tests.e2e.server import MODEL, NUM_BATCHED_TOKENS, Server, until

CHAT = "/v1/chat/completions"
LONG = "one two three four five six seven eight nine ten " * 60


async def seeded(client: openai.AsyncOpenAI) -> str:
    """A seeded answer to a prompt that takes several engine steps to read."""
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": LONG}], seed=11, temperature=0.8, max_tokens=24,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 2 * NUM_BATCHED_TOKENS
    return answer.choices[0].message.content or ""


async def test_a_seed_survives_chunked_prefill_alone_and_under_load(async_client: openai.AsyncOpenAI) -> None:
    """Stock vLLM's CPU engine dies of the first such request (`get_offset()` on a CPU generator)."""
    alone = await seeded(async_client)
    others = [
        asyncio.create_task(
            async_client.chat.completions.create(
                model=MODEL, messages=COUNT_FOREVER, seed=index, temperature=1, extra_body=FOREVER | {"max_tokens": 200}
            )
        )
        for index in range(4)
    ]
    together = await asyncio.gather(*(seeded(async_client) for _ in range(3)))
    await asyncio.gather(*others)
    assert set(together) == {alone}


def test_a_stream_whose_client_leaves_is_aborted_in_the_engine(server: Server, http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": COUNT_FOREVER, "stream": True, **FOREVER}
    with http.stream("POST", CHAT, json=body) as answer:
        request_id = answer.headers["x-request-id"]
        parts = answer.iter_raw()
        next(parts)
        until(lambda: server.num_running() == 1, 5, "the request in the engine's report")
    left_s = time.monotonic()
    until(lambda: server.num_running() == 0, 5, "an idle engine")
    assert time.monotonic() - left_s < 1.0
    line = server.request_line(request_id)
    assert (line["status"], line["finish_reason"]) == (499, None)
    assert 0 < line["output_tokens"] < FOREVER["max_tokens"]


async def test_a_whole_answer_whose_client_leaves_is_aborted_too(server: Server) -> None:
    """What it has cost by then is counted, though no token of it was sent."""
    before = server.metrics()
    body = {"model": MODEL, "messages": COUNT_FOREVER, **FOREVER}
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as client:
        request = asyncio.create_task(client.post(CHAT, json=body, timeout=60))
        await asyncio.to_thread(until, lambda: server.num_running() == 1, 5, "the request in the engine's report")
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    left_s = time.monotonic()
    await asyncio.to_thread(until, lambda: server.num_running() == 0, 5, "an idle engine")
    assert time.monotonic() - left_s < 1.0
    name, labels = "ballast_requests_total", {"route": CHAT, "code": "499"}
    count = before.value(name, **labels)
    await asyncio.to_thread(until, lambda: server.metrics().value(name, **labels) == count + 1, 5, "a count of 499")
    lines = [json.loads(line) for line in server.log_text().splitlines() if '"status":499' in line]
    assert not lines[-1]["stream"]
    assert lines[-1]["prompt_tokens"] > 0
    assert lines[-1]["output_tokens"] > 0
