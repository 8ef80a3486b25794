"""The gateway over real HTTP: pages, keys, request ids, what is logged."""

from tests.support.stack import CHAT, Stack, chat


async def test_a_whole_answer_comes_as_the_engine_made_it(stack: Stack) -> None:
    response = await stack.client.post(CHAT, json=chat(max_tokens=3))
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "w0 w1 w2 "
