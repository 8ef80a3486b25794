"""``AsyncLLM`` that counts tokens per request, and goes on with an answer that another replica has begun."""

import copy
import time
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from serving.engine.base import RequestContext, current_request
from serving.engine.grammar_check import GrammarCheck
from serving.engine.step_meter import StepMeter
from serving.engine.vllm_grammars import settle

_WHOLE = RequestOutputKind.FINAL_ONLY


class MeteredAsyncLLM(AsyncLLM):
    """``AsyncLLM`` that counts every request's tokens into the caller's context, finished or dropped.

    vLLM's serving layer asks for deltas when it streams and for one final output when it does not, so adding is right
    for both.

    A request whose context holds tokens to ``resume`` from is put to the engine as its prompt and those tokens, while
    everything in front of the engine (text so far, stop strings, usage) treats them as output that has been sent: the
    rest of the answer is what it would have been.
    """

    was_stopped = False
    """The engine's process has begun to end."""

    meter: StepMeter | None = None
    """Told when an idle engine is given work."""

    _grammar_check: GrammarCheck | None = None

    def check_grammars_with(self, check: GrammarCheck) -> None:
        """From now on no constraint is turned into a grammar in this process: ``check`` decides instead of vLLM."""
        self._grammar_check = check
        self.input_processor.structured_outputs_config = None  # with it vLLM's validation would do all of it again

    async def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        """Called by ``generate`` and ``encode``, with what vLLM's parsers made of the request's tools as well."""
        constraint = getattr(params, "structured_outputs", None)
        if constraint is not None and self._grammar_check is not None:
            await settle(self._grammar_check, constraint)
        return await super().add_request(request_id, prompt, params, *args, **kwargs)

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        request = current_request.get(None) or RequestContext()
        is_first, resumed = True, request.resume
        request.num_generating += 1
        try:
            async for output in super().generate(*args, **kwargs):
                if is_first:
                    is_first = False
                    request.prompt_tokens += len(output.prompt_token_ids or ())
                    request.cached_tokens += output.num_cached_tokens or 0
                for choice in output.outputs:
                    if request.continuable:
                        request.unsent_ids.extend(choice.token_ids)
                    if resumed:
                        choice.token_ids = [*resumed, *choice.token_ids]
                        resumed = ()
                    request.output_tokens += len(choice.token_ids)
                    if choice.finish_reason == "abort":
                        # Nobody here asked for it: the engine's process was told to end, and cuts what it was writing.
                        self.was_stopped = True
                        raise EngineDeadError
                    if choice.finish_reason is not None:
                        request.finish_reason = choice.finish_reason
                yield output
        finally:
            request.num_generating -= 1

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """Called by ``generate`` for what is dropped. An answer that was to come whole has told nothing until then, and
        one whose first token is still to come neither."""
        request = current_request.get(None)
        if request is not None and isinstance(request_id, str):
            states = self._states_of(request_id)
            untold = [state for state in states if state.output_kind is _WHOLE or state.is_prefilling]
            request.prompt_tokens += untold[0].prompt_len if untold else 0
            whole = (state for state in states if state.output_kind is _WHOLE)
            request.output_tokens += sum(state.detokenizer.num_output_tokens() for state in whole)
        await super().abort(request_id, internal)

    def _states_of(self, request_id: str) -> list[Any]:
        """vLLM's records of a request, or of the ``n`` that it was split into."""
        processor = self.output_processor
        parent = processor.parent_requests.get(request_id)
        names = parent.child_requests if parent is not None else (request_id,)
        return [processor.request_states[name] for name in names if name in processor.request_states]

    async def encode(self, *args: Any, **kwargs: Any) -> AsyncGenerator[PoolingRequestOutput, None]:
        request = current_request.get(None) or RequestContext()
        async for output in super().encode(*args, **kwargs):
            if output.finished:
                request.prompt_tokens += len(output.prompt_token_ids)
                request.finish_reason = "stop"
            yield output

    async def _add_request(
        self, request: EngineCoreRequest, prompt: str | None, parent_req: Any, index: int, queue: Any
    ) -> None:
        context = current_request.get(None)
        if self.meter is not None:
            self.meter.on_request(time.monotonic())
        if context is None or not context.resume:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        resumed = list(context.resume)
        self.output_processor.add_request(request, prompt, parent_req, index, queue)
        state = self.output_processor.request_states[request.request_id]
        state.sent_tokens_offset = len(resumed)
        stop = state.detokenizer.update(resumed, stop_terminated=False)
        end = FinishReason.STOP if stop is not None else _end_of(request, resumed)
        # What a stop string may still cut off has not been sent, but of an answer that has one, all up to it has.
        state.detokenizer.get_next_output_text(finished=stop is not None, delta=True)
        if end is not None:
            last = EngineCoreOutput(request.request_id, [], finish_reason=end, stop_reason=stop)
            self.output_processor.process_outputs([last])
        else:
            await self.engine_core.add_request_async(_rest_of(request, resumed))


def _end_of(request: EngineCoreRequest, resumed: list[int]) -> FinishReason | None:
    """Why an answer of these tokens is whole, if it is: only its end had not been sent."""
    params = request.sampling_params
    assert params is not None
    # As the engine's scheduler decides. `all_stop_token_ids` has the end of sequence also where that is to be ignored.
    if resumed[-1] in (params.stop_token_ids or ()) or (resumed[-1] == params.eos_token_id and not params.ignore_eos):
        return FinishReason.STOP
    return FinishReason.LENGTH if params.max_tokens is not None and len(resumed) >= params.max_tokens else None


def _rest_of(request: EngineCoreRequest, resumed: list[int]) -> EngineCoreRequest:
    """What the engine still has to do. Raises ValueError for a prompt that is not plain tokens."""
    params = request.sampling_params
    assert params is not None
    if request.prompt_token_ids is None or request.mm_features:
        raise ValueError("only an answer to a prompt of text can be resumed")
    rest = copy.copy(request)
    rest.prompt_token_ids = [*request.prompt_token_ids, *resumed]
    rest.sampling_params = params.clone()
    if params.max_tokens is not None:
        rest.sampling_params.max_tokens = params.max_tokens - len(resumed)
    rest.sampling_params.min_tokens = max(0, params.min_tokens - len(resumed))
    return rest
