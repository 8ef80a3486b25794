"""vLLM's own V2 request states and sampler, of made-up requests, on a CPU: what lives in pinned memory there lies in
plain memory here, and the two small kernels of vLLM's that a step needs are said in torch."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState

from serving.engine import gpu_sampler
from serving.engine.gpu_worker import BallastGpuModelRunner
from tests.support.vllm_batch import MAX_NUM_REQS, NUM_TOKENS

MAX_MODEL_LEN = 64
CPU = torch.device("cpu")


class PlainBuffer:
    """In place of vLLM's ``UvaBuffer``."""

    def __init__(self, size: int | Sequence[int], dtype: torch.dtype) -> None:
        self.cpu = self.uva = torch.zeros(size, dtype=dtype)
        self.np = self.cpu.numpy()


def write_staged(tensor: StagedWriteTensor) -> None:
    """In place of vLLM's ``apply_write``."""
    begin = 0
    rows = tensor.gpu if tensor.gpu.ndim == 2 else tensor.gpu[:, None]
    for index, start, end in zip(
        tensor._staged_write_indices, tensor._staged_write_starts, tensor._staged_write_cu_lens, strict=True
    ):
        content = tensor._staged_write_contents[begin:end]
        rows[index, start : start + len(content)] = torch.tensor(content, dtype=tensor.dtype)
        begin = end
    tensor.clear_staged_writes()


def sampled_and_rejected(
    num_sampled: torch.Tensor, seq_lens: torch.Tensor, _: Any, slots: torch.Tensor, prefill_len: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of vLLM's ``get_num_sampled_and_rejected``, of steps without drafts."""
    num_sampled = torch.where(seq_lens < prefill_len[slots], 0, num_sampled)
    return num_sampled, torch.zeros_like(num_sampled)


def without_a_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(buffer_utils, "UvaBuffer", PlainBuffer)
    patch.setattr(StagedWriteTensor, "apply_write", write_staged)
    patch.setattr(gpu_sampler, "get_num_sampled_and_rejected", sampled_and_rejected)


class FakeGpuRunner:
    """What `gpu_setup` looks at of vLLM's model runner V2. Requests come, are given tokens, and go."""

    def __init__(self, num_tokens: int = NUM_TOKENS, **options: Any) -> None:
        self.req_states = RequestState(MAX_NUM_REQS, MAX_MODEL_LEN, MAX_MODEL_LEN, 0, num_tokens, CPU)
        self.sampler: Any = Sampler(MAX_NUM_REQS, num_tokens, CPU, self.req_states, **options)
        self.rejection_sampler: Any = None
        self.model_config = SimpleNamespace(dtype=torch.bfloat16)
        self.tokens: dict[str, list[int]] = {}

    def add(self, name: str, prompt: Sequence[int] = (1, 2, 3), output: Sequence[int] = (), **asked: Any) -> None:
        """As vLLM's ``add_requests`` does, one at a time."""
        tokens = [*prompt, *output]
        new = SimpleNamespace(req_id=name, prefill_token_ids=tokens, prompt_len=len(prompt))
        self.tokens[name] = tokens
        hold = BallastGpuModelRunner.hold_tokens_of
        hold(self.sampler, SimpleNamespace(scheduled_new_reqs=[new]))
        self.req_states.add_request(name, len(prompt), tokens, 0, 16)
        self.sampler.add_request(self.req_states.req_id_to_index[name], len(prompt), SamplingParams(**asked))
        self.req_states.apply_staged_writes()
        self.sampler.apply_staged_writes()

    def remove(self, name: str) -> None:
        self.req_states.remove_request(name)
        del self.tokens[name]

    def batch(self, names: Sequence[str], prefilling: Sequence[str] = ()) -> Any:
        """A decode step of these requests, in this order; those still prefilling are one token short."""
        slots = np.array([self.req_states.req_id_to_index[name] for name in names], np.intp)
        lengths = torch.tensor([len(self.tokens[name]) - (name in prefilling) for name in names], dtype=torch.int32)
        indices = torch.arange(len(names))
        return SimpleNamespace(
            num_reqs=len(names), idx_mapping=torch.from_numpy(slots), idx_mapping_np=slots,
            expanded_idx_mapping=torch.from_numpy(slots), expanded_local_pos=torch.zeros(len(names), dtype=torch.int32),
            seq_lens=lengths, positions=lengths.to(torch.int64) - 1, logits_indices=indices,
            input_ids=torch.tensor([self.tokens[name][-1] for name in names], dtype=torch.int32),
            cu_num_logits=torch.arange(len(names) + 1), cu_num_logits_np=np.arange(len(names) + 1),
        )  # fmt: skip

    def step(self, logits: torch.Tensor, names: Sequence[str], prefilling: Sequence[str] = ()) -> dict[str, int]:
        """The token of each request; it is added to those that are not prefilling."""
        output = self.sampler(logits, self.batch(names, prefilling))
        tokens = dict(zip(names, output.sampled_token_ids.squeeze(-1).tolist(), strict=True))
        for name, token in tokens.items():
            if name not in prefilling:
                self.tokens[name].append(token)
        return tokens
