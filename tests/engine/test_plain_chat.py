"""The short cut for plain streams writes what vLLM's own generator writes, byte for byte."""

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replica.server import error_event

pytestmark = pytest.mark.engine

NOW_S = 1_795_000_000.0
Piece = tuple[str, int]


def make_serving(parser: str | None) -> Any:
    from vllm.parser import ParserManager

    from serving.engine.plain_chat import PlainChatServing

    serving = PlainChatServing.__new__(PlainChatServing)
    found = ParserManager.get_parser(
        tool_parser_name=parser, reasoning_parser_name=None, enable_auto_tools=parser is not None, model_name="m"
    )
    attributes = {
        "parser_cls": found, "response_role": "assistant", "enable_force_include_usage": False,
        "enable_log_outputs": False, "enable_log_deltas": False, "request_logger": None,
        "enable_per_request_metrics": False, "enable_prompt_tokens_details": False,
        "system_fingerprint": "vllm-0-test", "_include_reasoning_tokens_details": False, "model_config": None,
        "engine_client": SimpleNamespace(vllm_config=SimpleNamespace(speculative_config=None)),
    }  # fmt: skip
    for name, value in attributes.items():
        setattr(serving, name, value)
    return serving


class Tokenizer:
    """As much of one as the hermes parser looks at."""

    def get_vocab(self) -> dict[str, int]:
        return {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def make_results(pieces: list[Piece], finish: str) -> AsyncIterator[Any]:
    from vllm.outputs import CompletionOutput, RequestOutput

    async def results() -> AsyncIterator[Any]:
        for index, (text, num_tokens) in enumerate(pieces):
            is_last = index == len(pieces) - 1
            choice = CompletionOutput(0, text, [7] * num_tokens, None, None, finish_reason=finish if is_last else None)
            yield RequestOutput("r", "prompt", [1, 2, 3], None, [choice], is_last, num_cached_tokens=2)

    return results()


async def events_of(generator: Any) -> bytes:
    return b"".join([event if isinstance(event, bytes) else event.encode() async for event in generator])


async def both(parser: str | None, pieces: list[Piece], finish: str, **fields: Any) -> tuple[bytes, bytes]:
    """What vLLM writes, and what we write."""
    from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    serving = make_serving(parser)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], model="m", stream=True, **fields)
    assert serving._is_plain(request)
    answers = []
    for generate in (
        OpenAIServingChat.chat_completion_stream_generator,
        type(serving).chat_completion_stream_generator,
    ):
        metadata = RequestResponseMetadata(request_id="r")
        generator = generate(
            serving, request, make_results(pieces, finish), "chatcmpl-1", "demo", [], Tokenizer(), metadata
        )
        answers.append(await events_of(generator))
        assert metadata.final_usage_info is not None
        assert metadata.final_usage_info.completion_tokens == sum(num_tokens for _, num_tokens in pieces)
    return answers[0], answers[1]


PIECES = st.lists(st.tuples(st.text(max_size=6), st.integers(1, 3)), min_size=1, max_size=6)


@pytest.mark.parametrize("parser", [None, "hermes"])
@given(pieces=PIECES, finish=st.sampled_from(["stop", "length"]), usage=st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_bytes_are_vllms(parser: str | None, pieces: list[Piece], finish: str, usage: bool) -> None:
    import asyncio

    options = {"stream_options": {"include_usage": True}} if usage else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: NOW_S)
        theirs, ours = asyncio.run(both(parser, pieces, finish, **options))
    assert ours == theirs


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"echo": True},
        {"return_token_ids": True},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_more_than_text_is_left_to_vllm(fields: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], model="m", stream=True, **fields)
    assert not make_serving("hermes")._is_plain(request)


async def test_a_mistake_that_vllm_finds_when_generation_begins_is_its_error_event() -> None:
    from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import VLLMValidationError

    async def refused() -> AsyncIterator[Any]:
        raise VLLMValidationError("token_id(s) [50256] in logit_bias are out of vocabulary")
        yield

    serving = make_serving(None)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], model="m", stream=True)
    generator = serving.chat_completion_stream_generator(
        request, refused(), "chatcmpl-1", "demo", [], Tokenizer(), RequestResponseMetadata(request_id="r")
    )
    message, status = error_event(await events_of(generator))
    assert "out of vocabulary" in message
    assert status == 400
