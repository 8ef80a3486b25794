"""vLLM's GPU worker with Ballast's sampler (`gpu_setup`), named by ``worker_cls``."""

from typing import Any

from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from serving.engine import gpu_setup
from serving.engine.gpu_sampler import GpuKernelSampler
from serving.engine.kernel_setup import KERNELS, say_why_not
from serving.engine.sampling_counts import SamplingCounts
from serving.replica import progress


class BallastGpuModelRunner(GPUModelRunner):
    """Tells the sampler the tokens of new requests: sparse penalties are counted from them."""

    def add_requests(self, scheduler_output: Any) -> None:
        self.hold_tokens_of(self.sampler, scheduler_output)
        super().add_requests(scheduler_output)

    @staticmethod
    def hold_tokens_of(sampler: Any, scheduler_output: Any) -> None:
        """Tells ``sampler`` of the requests that the scheduler has added."""
        if isinstance(sampler, GpuKernelSampler):
            new_requests = scheduler_output.scheduled_new_reqs
            sampler.hold_tokens({new.req_id: (new.prefill_token_ids, new.prompt_len) for new in new_requests})


class BallastGpuWorker(Worker):
    """``Worker``, whose model runner V2 gets a sampler when its weights are there: before its memory is measured."""

    def load_model(self, **kwargs: Any) -> None:
        self._write_step(progress.WEIGHTS)
        super().load_model(**kwargs)
        runner = self.model_runner
        if getattr(runner, "sampler", None) is None:  # embeddings, or not the last of a pipeline
            return
        mode = self.vllm_config.additional_config.get(KERNELS, "auto")
        if type(runner) is not GPUModelRunner:
            say_why_not("sampling", f"the engine's model runner is {type(runner).__name__}, not V2", mode)
            return
        # vLLM has no seam for the runner's class; a subclass that adds no state can be given to the instance it made.
        runner.__class__ = BallastGpuModelRunner
        # Each counter has one writer; the workers of a tensor-parallel engine sample the same rows.
        gpu_setup.install(runner, mode, SamplingCounts.found() if self.rank == 0 else SamplingCounts.made())

    def determine_available_memory(self) -> int:
        self._write_step(progress.COMPILE)
        available_bytes = int(super().determine_available_memory())
        self._write_step(progress.WARM_UP)
        return available_bytes

    def compile_or_warm_up_model(self) -> Any:
        result = super().compile_or_warm_up_model()
        self._write_step(progress.API)
        return result

    def _write_step(self, step: str) -> None:
        if self.rank == 0:
            progress.write_step(step)
