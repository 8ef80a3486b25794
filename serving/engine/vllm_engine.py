"""vLLM's ``AsyncLLM`` and its own OpenAI app, behind the ``Engine`` seam. The only module that imports vLLM's frontend.

The app is vLLM's serving layer as it ships: templates, tools, structured output, log-probabilities, reasoning,
Responses and Anthropic messages are its own. Ballast adds three things around it, each by subclassing or by a
documented argument: tokens are metered per request, the engine's gauges are read from its own stat records, and the
model name echoed is the one asked for.
"""

import argparse
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from serving.engine.base import EngineLoad, RequestContext, current_request
from serving.engine.plain_chat import PlainChatServing
from serving.protocol.asgi import AsgiApp
from serving.replica.options import ReplicaOptions


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What one replica's engine is started with.

    ``served_names`` is the model's name and its aliases; ``args`` are fields of vLLM's ``AsyncEngineArgs`` and of its
    server arguments, already validated by the config.
    """

    model: str
    served_names: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)

    def as_namespace(self) -> argparse.Namespace:
        """vLLM's own defaults with ours over them. Raises ``ValueError`` for an argument vLLM does not have."""
        namespace: argparse.Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        for name, value in self.args.items():
            if not hasattr(namespace, name):
                raise ValueError(f"engine.extra.{name}: vLLM has no such argument")
            setattr(namespace, name, value)
        namespace.model = self.model
        namespace.served_model_name = list(self.served_names)
        namespace.disable_log_stats = False
        namespace.enable_log_requests = False
        validate_parsed_serve_args(namespace)
        return namespace


class VllmEngine:
    """One ``AsyncLLM`` (its core and workers are child processes) and vLLM's FastAPI app over it."""

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._gauges = _Gauges()
        self._llm: _MeteredAsyncLLM | None = None
        self._app: FastAPI | None = None

    async def start(self) -> None:
        namespace = self._options.as_namespace()
        config = AsyncEngineArgs.from_cli_args(namespace).create_engine_config(UsageContext.OPENAI_API_SERVER)
        llm = _MeteredAsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[self._gauges.as_logger_factory()],
        )
        self._llm = llm
        app = await self.stock_app()
        _echo_requested_name(app.state.openai_serving_models)
        if type(app.state.openai_serving_chat) is OpenAIServingChat:
            app.state.openai_serving_chat.__class__ = PlainChatServing
        self._app = app
        freeze_gc_heap()

    async def stock_app(self) -> FastAPI:
        """vLLM's app over this engine, as vLLM itself would serve it."""
        assert self._llm is not None, "start() has not got so far"
        namespace = self._options.as_namespace()
        tasks = await self._llm.get_supported_tasks()
        app: FastAPI = build_app(namespace, tasks, self._llm.model_config)
        await init_app_state(self._llm, app.state, namespace, tasks)
        return app

    @property
    def app(self) -> AsgiApp:
        assert self._app is not None, "start() has not finished"
        return self._app

    @property
    def dead(self) -> bool:
        return self._llm is not None and (self._llm.errored or self._llm.was_stopped)

    @property
    def max_model_len(self) -> int:
        assert self._llm is not None, "start() has not finished"
        return int(self._llm.model_config.max_model_len)

    def load(self) -> EngineLoad:
        return self._gauges.load

    async def stop(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def build(options: ReplicaOptions) -> VllmEngine:
    return VllmEngine(VllmOptions(options.source, options.served_names, options.engine_args))


def _echo_requested_name(models: OpenAIServingModels) -> None:
    """Answer with the alias the client used; vLLM always answers with the first served name."""
    own_name = models.model_name

    def model_name(lora_request: LoRARequest | None = None) -> str:
        requested = current_request.get(None)
        return requested.model_name if requested and requested.model_name else own_name(lora_request)

    models.model_name = model_name


_WHOLE = RequestOutputKind.FINAL_ONLY


class _MeteredAsyncLLM(AsyncLLM):
    """``AsyncLLM`` that counts every request's tokens into the caller's context, finished or dropped.

    vLLM's serving layer asks for deltas when it streams and for one final output when it does not, so adding is right
    for both.
    """

    was_stopped = False
    """The engine's process has begun to end."""

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        request = current_request.get(None) or RequestContext()
        is_first = True
        request.num_generating += 1
        try:
            async for output in super().generate(*args, **kwargs):
                if is_first:
                    is_first = False
                    request.prompt_tokens += len(output.prompt_token_ids or ())
                    request.cached_tokens += output.num_cached_tokens or 0
                for choice in output.outputs:
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
        """Called by ``generate`` for what is dropped. An answer that was to come whole has told nothing until then."""
        request = current_request.get(None)
        if request is not None and isinstance(request_id, str):
            unfinished = [state for state in self._states_of(request_id) if state.output_kind is _WHOLE]
            request.prompt_tokens += unfinished[0].prompt_len if unfinished else 0
            request.output_tokens += sum(state.detokenizer.num_output_tokens() for state in unfinished)
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


class _Gauges:
    """The latest of what vLLM's engine records about itself after every step."""

    def __init__(self) -> None:
        self.load = EngineLoad()

    def as_logger_factory(self) -> Any:
        gauges = self

        class GaugeLogger(StatLoggerBase):
            def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
                pass

            def record(
                self,
                scheduler_stats: SchedulerStats | None,
                iteration_stats: IterationStats | None,
                mm_cache_stats: MultiModalCacheStats | None = None,
                engine_idx: int = 0,
            ) -> None:
                gauges.record(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                pass

        return GaugeLogger

    def record(self, scheduler: SchedulerStats | None, iteration: IterationStats | None) -> None:
        previous = self.load
        self.load = EngineLoad(
            running=scheduler.num_running_reqs if scheduler else previous.running,
            waiting=scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs if scheduler else previous.waiting,
            kv_cache_usage=scheduler.kv_cache_usage if scheduler else previous.kv_cache_usage,
            generated_tokens=previous.generated_tokens + (iteration.num_generation_tokens if iteration else 0),
            iterations=previous.iterations + 1,
        )
