"""What the sampler is timed against on a GPU: torch always, FlashInfer and vLLM where they can be imported.

None of them does all that `sample` does. FlashInfer has no seeds or greedy rows within a batch and no logprobs; in the
mixed mode it is timed on the same filters without them, which is more than it can deliver. vLLM's and torch's times are
from raw bfloat16 logits, as `sample`'s.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch

from kernels.sample.types import Params


class Mode(Protocol):
    """What `gpu.Mode` has of use here."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def num_logprobs(self) -> int | None: ...
    @property
    def allowed(self) -> float | None: ...
    @property
    def num_edits(self) -> int: ...


class Peer(Protocol):
    """Another way to draw tokens."""

    @property
    def name(self) -> str: ...

    def prepare(self, logits: torch.Tensor, how: Params, mode: Mode) -> Callable[[], object] | None:
        """A call that draws a token for each row; None for a mode that the peer does not have."""


def installed_peers(device: str) -> list[Peer]:
    peers: list[Peer] = [Torch()]
    if device == "cuda":
        for peer in (FlashInfer, VllmTriton):
            try:
                peers.append(peer())
            except (ImportError, AttributeError, RuntimeError) as error:
                print(f"without {peer.__name__}: {error}")
    return peers


def _is_plain(mode: Mode) -> bool:
    return mode.num_logprobs is None and mode.allowed is None and not mode.num_edits


def likeliest(logits: torch.Tensor, tokens: torch.Tensor, num_logprobs: int) -> tuple[torch.Tensor, ...]:
    """Logprobs as vLLM's runner V1 takes them."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, tokens[:, None])
    values, ids = logprobs.topk(num_logprobs, dim=-1)
    return own, values, ids, (logprobs >= own).sum(-1)


class Torch:
    """Sort, cumulative sum and a draw by exponential noise, as vLLM's fallback at fewer than 8 rows."""

    name = "torch"

    def prepare(self, logits: torch.Tensor, how: Params, mode: Mode) -> Callable[[], object] | None:
        if mode.allowed is not None or mode.num_edits:
            return None
        if mode.temperature == 0:
            return lambda: logits.argmax(dim=-1)
        temperature = how.temperature.clamp_min(1e-3)[:, None]
        is_greedy = how.temperature < 1e-5

        def draw() -> torch.Tensor:
            x = logits.float() / temperature
            if mode.min_p:
                probabilities = x.softmax(-1)
                floor = mode.min_p * probabilities.amax(-1, keepdim=True)
                x = x.masked_fill(probabilities < floor, float("-inf"))
            if mode.top_k and mode.top_p == 1:
                x = x.masked_fill(x < x.topk(mode.top_k).values[:, -1:], float("-inf"))
            elif mode.top_p < 1:
                ascending, ids = x.sort(dim=-1)
                if mode.top_k:
                    ascending[:, : -mode.top_k] = float("-inf")
                ascending.masked_fill_(ascending.softmax(-1).cumsum(-1) <= 1 - mode.top_p, float("-inf"))
                x = x.scatter(-1, ids, ascending)
            noise = torch.empty_like(x).exponential_()
            return torch.where(is_greedy, logits.argmax(-1), (x.softmax(-1) / noise).argmax(-1))

        if mode.num_logprobs is None:
            return draw
        count = mode.num_logprobs
        return lambda: likeliest(logits, draw(), count)


class FlashInfer:
    name = "flashinfer"

    def __init__(self) -> None:
        self._sampling: Any = importlib.import_module("flashinfer.sampling")

    def prepare(self, logits: torch.Tensor, how: Params, mode: Mode) -> Callable[[], object] | None:
        if not _is_plain(mode) or mode.temperature == 0:
            return None
        sampling, temperature = self._sampling, how.temperature.clamp_min(1e-3)[:, None]

        def draw() -> Any:
            probabilities = (logits.float() / temperature).softmax(-1)
            if mode.min_p:
                return sampling.min_p_sampling_from_probs(probabilities, how.min_p)
            if mode.top_k and mode.top_p < 1:
                return sampling.top_k_top_p_sampling_from_probs(probabilities, how.top_k, how.top_p)
            if mode.top_k:
                return sampling.top_k_sampling_from_probs(probabilities, how.top_k)
            if mode.top_p < 1:
                return sampling.top_p_sampling_from_probs(probabilities, how.top_p)
            return sampling.sampling_from_probs(probabilities)

        return draw


class VllmTriton:
    """Runner V2's kernels: a float32 copy, temperature, top-k/top-p by pivots, Gumbel noise by seed and position."""

    name = "vllm-triton"

    def __init__(self) -> None:
        filters: Any = importlib.import_module("vllm.v1.sample.ops.topk_topp_triton")
        gumbel: Any = importlib.import_module("vllm.v1.worker.gpu.sample.gumbel")
        self._filter = filters.apply_top_k_top_p_triton
        self._scale = gumbel.apply_temperature
        self._draw = gumbel.gumbel_sample
        extra = inspect.signature(self._draw).parameters  # vLLM 0.26 has one argument fewer
        self._more = {"is_drafting": False} if "is_drafting" in extra else {}

    def prepare(self, logits: torch.Tensor, how: Params, mode: Mode) -> Callable[[], object] | None:
        if not _is_plain(mode) or mode.min_p:
            return None
        num_rows, num_tokens = logits.shape
        slots = torch.arange(num_rows, dtype=torch.int32, device=logits.device)
        k = torch.full_like(slots, mode.top_k or num_tokens) if mode.top_k else None
        p = how.top_p if mode.top_p < 1 else None

        def draw() -> Any:
            x = logits.float()
            self._scale(x, slots, how.temperature)
            if k is not None or p is not None:
                x = self._filter(x, k, p)
            return self._draw(x, slots, how.temperature, how.seed, how.position, apply_temperature=False, **self._more)

        return draw
