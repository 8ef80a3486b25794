"""vLLM's chat serving with a short cut for the stream that nearly all streams are: plain text, one choice.

For every token vLLM builds three pydantic objects, hands the text so far to the tool parser even when the request has
no tools, and serialises the result; all but a few characters of it are the same as in the chunk before. Here what
stays the same is written once per stream. Requests that are not plain take vLLM's own way, and the bytes are the same
on both (tests/engine/test_plain_chat.py runs vLLM's generator beside this one).
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson
from vllm.entrypoints.generate.base.protocol import DeltaMessage, RequestResponseMetadata
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat, _make_prompt_tokens_details
from vllm.entrypoints.serve.engine.protocol import UsageInfo
from vllm.entrypoints.serve.utils.api_utils import should_include_usage
from vllm.exceptions import VLLMClientError
from vllm.outputs import CompletionOutput, RequestOutput

from serving.engine.base import RequestContext, current_request

_OBJECT = "chat.completion.chunk"
_TAIL = b'},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'


class PlainChatServing(OpenAIServingChat):
    """``OpenAIServingChat`` whose plain streams are cheap. Adds no state: an existing instance may be given this
    class.
    """

    def chat_completion_stream_generator(
        self,
        request: ChatCompletionRequest,
        result_generator: AsyncIterator[RequestOutput],
        request_id: str,
        model_name: str,
        conversation: Any,
        tokenizer: Any,
        request_metadata: RequestResponseMetadata,
        **others: Any,
    ) -> AsyncGenerator[str | bytes, None]:
        """The events of one answer, in vLLM's signature (its ``serving.py`` calls this)."""
        context = current_request.get(None) or RequestContext()
        if self._is_plain(request):
            stream = _PlainStream(self, request, request_id, model_name, context)
            return stream.events(result_generator, request_metadata)
        context.continuable = False
        events: AsyncGenerator[str | bytes, None] = super().chat_completion_stream_generator(
            request, result_generator, request_id, model_name, conversation, tokenizer, request_metadata, **others
        )
        return events

    def _is_plain(self, request: ChatCompletionRequest) -> bool:
        """True where a chunk is nothing but a piece of text."""
        parser = self.parser_cls
        has_text_parser = parser is not None and (
            parser.reasoning_parser_cls is not None
            or parser.tool_parser_cls is None
            or parser.tool_parser_cls.engine_based_streaming
        )
        wants_more = request.tools or request.logprobs or request.echo or request.return_token_ids
        _, wants_continuous_usage = should_include_usage(request.stream_options, self.enable_force_include_usage)
        is_served_plainly = not (self.enable_log_outputs or self.enable_per_request_metrics)
        is_speculative = self.engine_client.vllm_config.speculative_config is not None
        return (
            request.n in (None, 1)
            and is_served_plainly
            and not (has_text_parser or wants_more or wants_continuous_usage or is_speculative)
            and not request.return_prompt_text
        )


class _PlainStream:
    """One plain answer."""

    def __init__(
        self,
        serving: PlainChatServing,
        request: ChatCompletionRequest,
        request_id: str,
        model_name: str,
        context: RequestContext,
    ) -> None:
        self._context = context
        self._serving = serving
        self._request = request
        self._envelope: dict[str, Any] = {
            "id": request_id,
            "object": _OBJECT,
            "created": context.created or int(time.time()),
            "model": model_name,
        }
        self._includes_usage, _ = should_include_usage(request.stream_options, serving.enable_force_include_usage)
        # With a tool parser configured vLLM sends no chunk for a token that adds no text; without one it sends an
        # empty one.
        self._sends_empty_text = serving.parser_cls is None

    async def events(
        self, results: AsyncIterator[RequestOutput], metadata: RequestResponseMetadata
    ) -> AsyncGenerator[str | bytes, None]:
        """A client's mistake, which vLLM finds when generation begins, becomes vLLM's error event; whatever else
        ``results`` raises is raised, and the replica ends the stream with an error."""
        head = b"data: " + orjson.dumps(self._envelope)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        dumps, num_tokens = orjson.dumps, 0
        last: RequestOutput | None = None
        try:
            async for result in results:
                if last is None and not self._context.resume:
                    yield self._first_event()
                last = result
                for output in result.outputs:
                    is_silent = not output.text and (not self._sends_empty_text or not (output.token_ids or num_tokens))
                    num_tokens += len(output.token_ids)
                    if output.finish_reason is not None:
                        yield self._last_event(output)
                    elif not is_silent:
                        yield head + dumps(output.text) + _TAIL
        except VLLMClientError as error:
            yield f"data: {self._serving.create_streaming_error_response(error)}\n\n"
            return
        if last is not None:
            metadata.final_usage_info = self._usage(last, num_tokens)
            if self._includes_usage:
                yield self._usage_event(last, num_tokens)
        yield b"data: [DONE]\n\n"

    def _first_event(self) -> str:
        delta = DeltaMessage(role=self._serving.get_chat_request_role(self._request), content="")
        choice = ChatCompletionResponseStreamChoice(index=0, delta=delta, logprobs=None, finish_reason=None)
        return _event(self._chunk(choices=[choice], prompt_token_ids=None, prompt_text=None))

    def _last_event(self, output: CompletionOutput) -> str:
        self._serving._raise_if_error(output.finish_reason, self._envelope["id"])
        has_delta = bool(output.text) or self._sends_empty_text
        choice = ChatCompletionResponseStreamChoice(
            index=0,
            delta=DeltaMessage(content=output.text) if has_delta else DeltaMessage(),
            logprobs=None,
            finish_reason=output.finish_reason or "stop",
            stop_reason=output.stop_reason,
            token_ids=None,
        )
        chunk = self._chunk(choices=[choice])
        if not self._includes_usage and self._serving.system_fingerprint is not None:
            chunk.system_fingerprint = self._serving.system_fingerprint
        return _event(chunk)

    def _usage_event(self, last: RequestOutput, num_tokens: int) -> str:
        usage = self._usage(last, num_tokens)
        usage.prompt_tokens_details = _make_prompt_tokens_details(
            self._serving.enable_prompt_tokens_details,
            last.num_cached_tokens,
            last.num_cache_creation_tokens,
            None,
        )
        chunk = self._chunk(choices=[], usage=usage, system_fingerprint=self._serving.system_fingerprint, metrics=None)
        return f"data: {chunk.model_dump_json(exclude_unset=True, exclude_none=True)}\n\n"

    def _chunk(self, **fields: Any) -> ChatCompletionStreamResponse:
        return ChatCompletionStreamResponse(**self._envelope, **fields)

    @staticmethod
    def _usage(last: RequestOutput, num_tokens: int) -> UsageInfo:
        num_prompt_tokens = len(last.prompt_token_ids or ())
        return UsageInfo(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=num_tokens,
            total_tokens=num_prompt_tokens + num_tokens,
            completion_tokens_details=None,
        )


def _event(chunk: ChatCompletionStreamResponse) -> str:
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
