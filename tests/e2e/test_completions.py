"""Plain completions through the official client."""

import httpx
import openai

from tests.e2e.server import ALIAS, MODEL

#: The chat above, as the model's template writes it.
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_is_completed(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0, max_tokens=8)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "Paris"
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    with client.completions.create(model=ALIAS, prompt=PROMPT, temperature=0, max_tokens=8, stream=True) as stream:
        chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Paris"
    assert {(chunk.id, chunk.model) for chunk in chunks} == {(chunks[0].id, ALIAS)}
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]


async def test_several_prompts_have_an_answer_each(async_client: openai.AsyncOpenAI) -> None:
    other = PROMPT.replace("France", "Italy")
    answer = await async_client.completions.create(model=MODEL, prompt=[PROMPT, other], temperature=0, max_tokens=8)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "Paris"), (1, "Rome")]


def test_echo_returns_the_prompt_and_scores_it(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Count from 1", echo=True, logprobs=2, max_tokens=2)
    choice = answer.choices[0]
    assert choice.text.startswith("Count from 1")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None  # nothing precedes the first token
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens).startswith(choice.text)  # the end of a turn is a token without text


def test_token_ids_are_a_prompt_too(client: openai.OpenAI, http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "add_special_tokens": False}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    answer = client.completions.create(model=MODEL, prompt=tokens, temperature=0, max_tokens=8)
    assert answer.choices[0].text == "Paris"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens)
