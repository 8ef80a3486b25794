"""vLLM's ``AsyncLLM`` and its own OpenAI app, behind the ``Engine`` seam. The only module that imports vLLM's frontend.

The app is vLLM's serving layer as it ships: templates, tools, structured output, log-probabilities, reasoning,
Responses and Anthropic messages are its own. Ballast adds three things around it, each by subclassing or by a
documented argument: tokens are metered per request, the engine's gauges are read from its own stat records, and the
model name echoed is the one asked for.
"""

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import REGISTRY
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from serving.config.limits import Limits
from serving.config.speed import CPU_SPEED, GUESS_STEPS
from serving.engine.base import EngineLoad, current_request
from serving.engine.grammar_check import CheckedApp, GrammarCheck
from serving.engine.metered_llm import MeteredAsyncLLM
from serving.engine.plain_chat import PlainChatServing
from serving.engine.sampling_counts import VARIABLE as SAMPLING_FILE
from serving.engine.sampling_counts import Count, SamplingCollector, SamplingCounts
from serving.engine.sandbox import Sandbox
from serving.engine.step_meter import StepMeter, tokens_in_blocks
from serving.engine.vllm_grammars import TARGET, settings_of
from serving.protocol.asgi import AsgiApp
from serving.protocol.frames import StepSpeed
from serving.replica.options import ReplicaOptions

#: For engines that are started without a config: its default.
GRAMMAR_CPU_S: float = Limits().grammar_compile_s


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What one replica's engine is started with.

    ``served_names`` is the model's name and its aliases; ``args`` are fields of vLLM's ``AsyncEngineArgs`` and of its
    server arguments, already validated by the config; ``grammar_cpu_s`` bounds the making of one grammar; ``speed`` is
    what a step costs before any was measured, worth ``speed_steps`` of them. With ``zygote_path`` the sandbox is forked
    from the zygote there, and the engine's process from this one, which has imported all that it needs and must not
    have run a parallel loop.
    """

    model: str
    served_names: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    grammar_cpu_s: float = GRAMMAR_CPU_S
    speed: StepSpeed = CPU_SPEED
    speed_steps: float = GUESS_STEPS
    zygote_path: Path | None = None

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
        namespace.enable_logging_iteration_details = True  # what each step did, for `StepMeter`; nothing is logged
        validate_parsed_serve_args(namespace)
        return namespace


class VllmEngine:
    """One ``AsyncLLM`` (its core and workers are child processes) and vLLM's FastAPI app over it."""

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._gauges = _Gauges(options.speed, options.speed_steps)
        self._llm: MeteredAsyncLLM | None = None
        self._app: AsgiApp | None = None
        self._sandbox: Sandbox | None = None
        self._counts = SamplingCounts.made()
        self._sampling = SamplingCollector(self._counts)

    async def start(self) -> None:
        # With a record of every step, vLLM's own logger would write a line for each.
        logging.getLogger("vllm.v1.metrics.loggers").setLevel(logging.WARNING)
        os.environ[SAMPLING_FILE] = self._counts.path
        namespace = self._options.as_namespace()
        config = AsyncEngineArgs.from_cli_args(namespace).create_engine_config(UsageContext.OPENAI_API_SERVER)
        if self._options.zygote_path is not None:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # on CPU the config has just said "spawn"
        llm = MeteredAsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[self._gauges.as_logger_factory()],
        )
        self._llm = llm
        self._gauges.know(config)
        llm.meter = self._gauges.meter
        app = await self.stock_app()
        _echo_requested_name(app.state.openai_serving_models)
        if type(app.state.openai_serving_chat) is OpenAIServingChat:
            app.state.openai_serving_chat.__class__ = PlainChatServing
        self._app = self._checked(app, llm, config) if config.model_config.runner_type == "generate" else app
        REGISTRY.register(self._sampling)
        freeze_gc_heap()

    def _checked(self, app: FastAPI, llm: MeteredAsyncLLM, config: VllmConfig) -> AsgiApp:
        """``app`` behind the check of constraints. The check's process loads in the background: an engine is ready
        before it.
        """
        cpu_s = self._options.grammar_cpu_s
        self._sandbox = Sandbox(TARGET, settings_of(config, llm.tokenizer), cpu_s, self._options.zygote_path)
        self._sandbox.start()
        check = GrammarCheck(self._sandbox, cpu_s)
        llm.check_grammars_with(check)
        return CheckedApp(app, check)

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
    def draws_by_place(self) -> bool:
        assert self._llm is not None, "start() has not finished"
        # What verifies drafts is vLLM's rejection sampler, which draws from a generator's state.
        is_speculative = self._llm.vllm_config.speculative_config is not None
        return bool(self._counts.values()[Count.IS_ACTIVE]) and not is_speculative

    @property
    def max_model_len(self) -> int:
        assert self._llm is not None, "start() has not finished"
        return int(self._llm.model_config.max_model_len)

    def load(self) -> EngineLoad:
        unfinished = self._llm.output_processor.get_num_unfinished_requests() if self._llm is not None else 0
        meter = self._gauges.meter
        return replace(self._gauges.load, unfinished=unfinished, work=meter.work, speed=meter.speed)

    async def answer(self) -> None:
        assert self._llm is not None, "start() has not finished"
        with contextlib.suppress(EngineDeadError):  # `dead` says so
            await self._llm.is_paused()

    async def stop(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.stop()
            self._sandbox = None
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
        with contextlib.suppress(KeyError):  # it was never registered
            REGISTRY.unregister(self._sampling)


def build(options: ReplicaOptions) -> VllmEngine:
    return VllmEngine(
        VllmOptions(
            options.source, options.served_names, options.engine_args, options.grammar_compile_s, options.speed,
            options.speed_steps, options.zygote_path,
        )
    )  # fmt: skip


def _echo_requested_name(models: OpenAIServingModels) -> None:
    """Answer with the alias the client used; vLLM always answers with the first served name."""
    own_name = models.model_name

    def model_name(lora_request: LoRARequest | None = None) -> str:
        requested = current_request.get(None)
        return requested.model_name if requested and requested.model_name else own_name(lora_request)

    models.model_name = model_name


class _Gauges:
    """The latest of what vLLM's engine records about itself after every step."""

    def __init__(self, seed: StepSpeed, seed_steps: float) -> None:
        self.load = EngineLoad()
        self.meter = StepMeter(seed, seed_steps)
        self.kv_capacity_tokens = 0
        self._block_size = 1

    def know(self, config: VllmConfig) -> None:
        """The bounds of the engine that has started."""
        cache = config.cache_config
        self._block_size = cache.block_size
        self.kv_capacity_tokens = (cache.num_gpu_blocks or 0) * cache.block_size
        self.load = replace(
            self.load,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            kv_capacity_tokens=self.kv_capacity_tokens,
        )

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
        self.load = replace(
            previous,
            running=scheduler.num_running_reqs if scheduler else previous.running,
            waiting=scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs if scheduler else previous.waiting,
            kv_cache_usage=scheduler.kv_cache_usage if scheduler else previous.kv_cache_usage,
            kv_tokens=self._kv_tokens(scheduler) if scheduler else previous.kv_tokens,
            generated_tokens=previous.generated_tokens + (iteration.num_generation_tokens if iteration else 0),
            iterations=previous.iterations + 1,
        )
        if scheduler is not None:
            self._measure(scheduler)

    def _kv_tokens(self, scheduler: SchedulerStats) -> float:
        held_tokens = scheduler.kv_cache_usage * self.kv_capacity_tokens
        return tokens_in_blocks(held_tokens, scheduler.num_running_reqs, self._block_size)

    def _measure(self, scheduler: SchedulerStats) -> None:
        details = scheduler.iteration_details
        if details is not None and not details.is_dummy:
            num_sequences, kv_tokens = details.num_generation_requests, self.load.kv_tokens
            self.meter.on_step(time.monotonic(), num_sequences, kv_tokens, details.num_ctx_tokens)
        if not self.load.running + self.load.waiting:
            self.meter.on_idle()
