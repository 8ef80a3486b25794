"""vLLM's CPU worker with Ballast's sampler (`kernel_setup`), and with a fault removed that lets any client kill the
engine.

A prompt that is prefilled in chunks is "sampled" after every chunk, and the result of all but the last is thrown
away. For a seeded request vLLM 0.29 then winds the generator back with ``set_offset``, which only CUDA generators
have (``v1/worker/gpu_model_runner.py:3785``): the worker raises and the engine dies. Here a row whose sample will be
thrown away does not draw from its generator in the first place, so there is nothing to wind back, and the same seed
gives the same text however the prompt was cut.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from serving.engine import kernel_setup
from serving.engine.batch_rules import grammar_mask_of
from serving.engine.kernel_sampler import KernelSampler
from serving.engine.kernel_setup import KERNELS
from serving.engine.sampling_counts import SamplingCounts
from serving.replica import progress


class BallastCpuModelRunner(CPUModelRunner):
    """Keeps generators away from rows whose sample is discarded, and gives grammars to a sampler that wants them."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        if grammar_output is not None and self.execute_model_state is not None and self._holds_grammars():
            num_tokens = self.execute_model_state.logits.shape[1]
            self.sampler.hold_grammar(grammar_mask_of(self.input_batch, grammar_output, num_tokens))
            grammar_output = None
        return super().sample_tokens(grammar_output)

    def _holds_grammars(self) -> bool:
        is_speculative = self.execute_model_state.spec_decode_metadata is not None
        return isinstance(self.sampler, KernelSampler) and not is_speculative

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_discarded_generators():
            return super()._sample(*args, **kwargs)

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_discarded_generators():
            return super()._bookkeeping_sync(*args, **kwargs)

    @contextmanager
    def _without_discarded_generators(self) -> Iterator[None]:
        generators = self.input_batch.generators
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs]
        held = {index: generators.pop(index) for index in list(generators) if discarded[index]}
        try:
            yield
        finally:
            generators.update(held)


class BallastCpuWorker(CPUWorker):
    """``CPUWorker`` with ``BallastCpuModelRunner``, and with the number of threads that the pool says."""

    def init_device(self) -> None:
        # OpenMP reads the variable when it is loaded, which in a forked process was long ago.
        if num_threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(num_threads))
        super().init_device()
        # vLLM has no seam for the runner's class; a subclass that adds no state can be given to the instance it made.
        assert type(self.model_runner) is CPUModelRunner, type(self.model_runner)
        self.model_runner.__class__ = BallastCpuModelRunner

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        progress.write_step(progress.WEIGHTS)
        super().load_model(*args, **kwargs)

    def determine_available_memory(self) -> int:
        progress.write_step(progress.COMPILE)
        available_bytes = int(super().determine_available_memory())  # compiles, where it is told to
        progress.write_step(progress.WARM_UP)
        return available_bytes

    def compile_or_warm_up_model(self) -> Any:
        if self.model_runner.model_config.runner_type == "generate":
            mode = self.vllm_config.additional_config.get(KERNELS, "auto")
            kernel_setup.install(self.model_runner, mode, SamplingCounts.found())
        result = super().compile_or_warm_up_model()
        progress.write_step(progress.API)
        return result
