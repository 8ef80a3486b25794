"""vLLM's own running batch, of made-up requests, without an engine."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from serving.engine.batch_rules import PROCESSORS

NUM_TOKENS = 1003
MAX_NUM_REQS = 16
CPU = torch.device("cpu")


class FakeRunner:
    """What the sampler looks at of vLLM's model runner. Requests come, are given tokens, and go."""

    def __init__(self, processors: Sequence[Any] | None = None) -> None:
        config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=MAX_NUM_REQS))
        made = [kind(config, CPU, False) for kind in PROCESSORS] if processors is None else processors
        self.input_batch = InputBatch(
            max_num_reqs=MAX_NUM_REQS,
            max_model_len=256,
            max_num_batched_tokens=256,
            device=CPU,
            vocab_size=NUM_TOKENS,
            block_sizes=[16],
            kernel_block_sizes=[16],
            max_num_blocks_per_req=[16],
            logitsprocs=LogitsProcessors(made),
        )
        self.requests: dict[str, CachedRequestState] = {}
        self.sampler: Any = Sampler()
        self.optimistic_seq_lens_cpu = torch.zeros(MAX_NUM_REQS, dtype=torch.int32)
        self.execute_model_state = None

    def add(self, name: str, prompt: Sequence[int] = (1, 2, 3), output: Sequence[int] = (), **asked: Any) -> None:
        """A request with these fields of `SamplingParams`."""
        bad_words = asked.pop("bad_words_token_ids", None)
        params = SamplingParams(**asked)
        params._bad_words_token_ids = bad_words
        generator = torch.Generator().manual_seed(params.seed) if params.seed is not None else None
        request = CachedRequestState(
            req_id=name,
            prompt_token_ids=list(prompt),
            mm_features=[],
            sampling_params=params,
            generator=generator,
            block_ids=([],),
            num_computed_tokens=0,
            output_token_ids=list(output),
        )
        self.requests[name] = request
        self.input_batch.add_request(request)

    def remove(self, *names: str) -> None:
        """Once between two steps, before others are added, as vLLM does."""
        for name in names:
            self.input_batch.remove_request(name)
            del self.requests[name]
        self.input_batch.condense()

    def refresh(self) -> None:
        """Call when requests have come, gone or grown, before a step."""
        batch = self.input_batch
        batch.refresh_metadata()
        for row, name in enumerate(batch.req_ids):
            self.optimistic_seq_lens_cpu[row] = self.requests[name].num_tokens

    def sample(self, logits: torch.Tensor, sampler: Any = None) -> Any:
        """A step: of rows in the order of the batch."""
        self.refresh()
        metadata = self.input_batch.sampling_metadata
        return (sampler or self.sampler)(logits=logits, sampling_metadata=metadata)

    def tokens(self, logits: torch.Tensor, sampler: Any = None) -> dict[str, int]:
        """The token of each request."""
        found = self.sample(logits, sampler).sampled_token_ids.squeeze(-1).tolist()
        return dict(zip(self.input_batch.req_ids, found, strict=True))

    def grow(self, tokens: dict[str, int]) -> None:
        """Add to each output."""
        for name, token in tokens.items():
            self.requests[name].output_token_ids.append(token)


def rows(number: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    """Logits [N, V], float32: no two of a row are equal, for vLLM leaves the order of equals open."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(number, NUM_TOKENS, generator=generator)
