"""Schemas that take long to turn into a grammar: refused in every dialect, and nobody else's stream waits for them."""

import asyncio
import time
from itertools import pairwise

import httpx
import openai
import pytest

from tests.e2e.server import ALIAS, GRAMMAR_COMPILE_S, Server

NUM_TOKENS = 150
#: Far over the time between two tokens, far under what one of the schemas below took on the event loop.
LONGEST_GAP_S = 0.4

Json = dict[str, object]


def costly(salt: int) -> Json:
    """Within every cap, and half a second's work: each range of numbers becomes a pattern of its own."""
    ranges = {
        f"p{number}": {"type": "number", "minimum": -123456789.1234 - number, "maximum": 123456789.1234 + salt}
        for number in range(740)
    }
    return {"type": "object", "properties": ranges, "required": list(ranges)}


def bodies(schema: Json) -> dict[str, tuple[Json, str | None]]:
    """By path: a request with this schema, and the field that its refusal names."""
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    messages = [{"role": "user", "content": "Hi"}]
    return {
        "/v1/chat/completions": (
            {"messages": messages, "stream": True, "response_format": form}, "response_format.json_schema.schema",
        ),
        "/v1/completions": ({"prompt": "Hi", "structured_outputs": {"json": schema}}, "structured_outputs.json"),
        "/v1/responses": (
            {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "s", "schema": schema}}},
            "text.format.schema",
        ),
        "/v1/messages": (
            {"messages": messages, "max_tokens": 5,
             "output_config": {"format": {"type": "json_schema", "schema": schema}}},
            None,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("path", bodies({}))
def test_f29_a_schema_that_takes_too_long_is_a_400_in_every_dialect(http: httpx.Client, path: str) -> None:
    body, param = bodies(costly(1))[path]
    answer = http.post(path, json={"model": ALIAS, **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert f"{GRAMMAR_COMPILE_S:g} s of processor time" in error["message"]
    assert error["type"] == "invalid_request_error"
    if param is None:
        assert answer.json()["type"] == "error"
    else:
        assert (error["param"], error["code"]) == (param, None)


async def test_f29_a_neighbours_stream_goes_on_while_schemas_are_tried(
    server: Server, async_client: openai.AsyncOpenAI
) -> None:
    async def gaps() -> list[float]:
        stream = await async_client.completions.create(
            model=ALIAS, prompt="Once", max_tokens=NUM_TOKENS, stream=True, extra_body={"ignore_eos": True}
        )
        times = [time.monotonic() async for _ in stream]
        return [later - earlier for earlier, later in pairwise(times)]

    async def bomb(http: httpx.AsyncClient, salt: int) -> int:
        body, _ = bodies(costly(salt))["/v1/completions"]
        return (await http.post("/v1/completions", json={"model": ALIAS, "max_tokens": 1, **body})).status_code

    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, trust_env=False) as http:
        await gaps()
        neighbour = asyncio.create_task(gaps())
        await asyncio.sleep(0)
        statuses = await asyncio.gather(*(bomb(http, salt) for salt in range(10, 13)))
        longest_gap_s = max(await neighbour)
    assert statuses == [400] * 3
    assert longest_gap_s < LONGEST_GAP_S
