"""Chat completions through the official client, on the real engine."""

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.e2e.prompts import CAPITAL, COUNT_TO_TEN
from tests.e2e.server import ALIAS, MODEL


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    """The text of one choice."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def ids_of(client: openai.OpenAI, text: str) -> list[int]:
    """Token ids of ``text`` alone."""
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    tokens: list[int] = client.with_options(base_url=str(client.base_url).removesuffix("/v1/")).post(
        "/tokenize", body=body, cast_to=object
    )["tokens"]  # type: ignore[index]
    return tokens


class TestWholeAnswers:
    def test_the_bundled_model_knows_the_capital_of_france(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content == "Paris"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    async def test_the_async_client_gets_the_same_answer(self, async_client: openai.AsyncOpenAI) -> None:
        answer = await async_client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
        assert answer.choices[0].message.content == "Paris"

    def test_the_name_that_was_asked_for_is_the_name_in_the_answer(self, client: openai.OpenAI) -> None:
        for name in (MODEL, ALIAS):
            assert client.chat.completions.create(model=name, messages=CAPITAL, max_tokens=1).model == name

    def test_every_answer_says_what_made_it(self, client: openai.OpenAI) -> None:
        """`system_fingerprint`, so that a client can tell when the backend has changed."""
        answers = [client.chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=1) for _ in range(2)]
        assert answers[0].system_fingerprint
        assert answers[0].system_fingerprint == answers[1].system_fingerprint
        assert answers[0].id != answers[1].id

    def test_members_without_a_value_are_null_and_not_missing(self, client: openai.OpenAI) -> None:
        choice = client.chat.completions.with_raw_response.create(model=MODEL, messages=CAPITAL).http_response.json()[
            "choices"
        ][0]
        assert choice["logprobs"] is None
        assert choice["message"]["refusal"] is None


class TestStreams:
    def test_a_stream_is_one_answer_in_pieces(self, client: openai.OpenAI) -> None:
        """The role comes first, one id and model name throughout, one finish reason, the text of the whole answer."""
        whole = client.chat.completions.create(model=ALIAS, messages=COUNT_TO_TEN, temperature=0, max_tokens=60)
        with client.chat.completions.create(
            model=ALIAS, messages=COUNT_TO_TEN, temperature=0, max_tokens=60, stream=True
        ) as stream:
            chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        assert {chunk.model for chunk in chunks} == {ALIAS}
        assert {chunk.created for chunk in chunks} == {chunks[0].created}
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert len([c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]) == 1
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert text_of(chunks) == whole.choices[0].message.content
        assert len(chunks) > 10

    def test_usage_is_streamed_only_to_those_who_ask(self, client: openai.OpenAI) -> None:
        """It then comes last, in a chunk without choices."""
        with client.chat.completions.create(model=MODEL, messages=CAPITAL, stream=True) as stream:
            assert all(chunk.usage is None and chunk.choices for chunk in stream)
        with client.chat.completions.create(
            model=MODEL, messages=CAPITAL, stream=True, stream_options={"include_usage": True}
        ) as stream:
            *others, last = stream
        assert all(chunk.usage is None and chunk.choices for chunk in others)
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens > 0

    async def test_the_async_client_streams(self, async_client: openai.AsyncOpenAI) -> None:
        stream = await async_client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, stream=True)
        async with stream:
            assert text_of([chunk async for chunk in stream]) == "Paris"

    def test_the_clients_own_stream_helper_accepts_what_comes(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(model=MODEL, messages=CAPITAL, temperature=0) as stream:
            for _ in stream:
                pass
            assert stream.get_final_completion().choices[0].message.content == "Paris"

    def test_every_choice_of_a_stream_has_one_role_and_one_end(self, client: openai.OpenAI) -> None:
        with client.chat.completions.create(
            model=MODEL, messages=COUNT_TO_TEN, n=2, temperature=1, seed=3, max_tokens=30, stream=True
        ) as stream:
            chunks = list(stream)
        for index in (0, 1):
            own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
            assert [choice.delta.role for choice in own if choice.delta.role] == ["assistant"]
            assert len([choice.finish_reason for choice in own if choice.finish_reason]) == 1
            assert own[-1].finish_reason


class TestSampling:
    def test_n_answers_have_n_indices(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, n=2, temperature=1)
        assert sorted(choice.index for choice in answer.choices) == [0, 1]
        assert all(choice.finish_reason for choice in answer.choices)

    def test_a_seed_repeats_an_answer_and_another_seed_does_not(self, client: openai.OpenAI) -> None:
        """Hot enough to be noise, so that equality can have one cause only."""

        def say(seed: int) -> str | None:
            answer = client.chat.completions.create(
                model=MODEL, messages=CAPITAL, seed=seed, temperature=2, max_tokens=24, extra_body={"ignore_eos": True}
            )
            return answer.choices[0].message.content

        assert say(7) == say(7)
        assert say(7) != say(8)

    def test_a_stop_string_ends_the_answer_and_is_not_in_it(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=COUNT_TO_TEN, temperature=0, stop=[" 5", "zebra"])
        assert answer.choices[0].message.content == "1, 2, 3, 4,"
        assert answer.choices[0].finish_reason == "stop"

    def test_logit_bias_can_force_and_forbid_a_token(self, client: openai.OpenAI) -> None:
        wanted, unwanted = ids_of(client, "Rome")[0], ids_of(client, "Paris")[0]
        forced = client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=1, logit_bias={str(wanted): 100}
        )
        forbidden = client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=4, logit_bias={str(unwanted): -100}
        )
        assert "Rome".startswith(forced.choices[0].message.content or "nothing")
        assert not (forbidden.choices[0].message.content or "").startswith("Paris")

    @pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
    def test_a_penalty_keeps_the_model_from_repeating_itself(self, client: openai.OpenAI, penalty: str) -> None:
        """Hot and seeded, so that nothing but the penalty differs and everything is possible."""

        def num_distinct_tokens(value: float) -> int:
            answer = client.chat.completions.create(
                model=MODEL, messages=COUNT_TO_TEN, temperature=2, seed=1, max_tokens=60, logprobs=True,
                extra_body={"ignore_eos": True, penalty: value},
            )  # fmt: skip
            logprobs = answer.choices[0].logprobs
            assert logprobs is not None
            return len({token.token for token in logprobs.content or []})

        assert num_distinct_tokens(2) > num_distinct_tokens(-2)

    @pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
    def test_the_output_cap_is_kept_to_the_token(self, client: openai.OpenAI, field: str) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=COUNT_TO_TEN, extra_body={field: 3})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3

    def test_log_probabilities_come_with_their_alternatives(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, logprobs=True, top_logprobs=3
        )
        choice = answer.choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        said = [token for token in choice.logprobs.content if not token.token.startswith("<|")]
        assert "".join(token.token for token in said) == choice.message.content
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 3
            assert token.top_logprobs[0].logprob == max(one.logprob for one in token.top_logprobs)

    def test_log_probabilities_are_streamed_beside_their_text(self, client: openai.OpenAI) -> None:
        with client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, logprobs=True, stream=True
        ) as stream:
            choices = [choice for chunk in stream for choice in chunk.choices if choice.delta.content]
        assert choices
        assert all(choice.logprobs and choice.logprobs.content for choice in choices)
