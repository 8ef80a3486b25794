"""What is measured: rows of logits, and one step of each mode by each contender."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.kernels import plain_torch, stock
from kernels.penalties.cpu import Penalties
from kernels.penalties.rules import Rules
from kernels.sample import cpu
from kernels.sample.types import Params

STOCK, TORCH, OURS, FLOOR = "stock", "torch", "ours", "floor"

MODES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top-k": {"top_k": 50},
    "top-p": {"top_p": 0.9},
    "top-k+top-p": {"top_k": 50, "top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "seeds": {},
    "top-k+top-p+seeds": {"top_k": 50, "top_p": 0.9},
    "logprobs": {},
    "penalties": {},
    "grammar, 2 % allowed": {},
    "grammar, 50 % allowed": {},
}
OP_OF = {"logprobs": "logprobs", "penalties": "penalties", "grammar, 2 % allowed": "grammar_mask"} | {
    "grammar, 50 % allowed": "grammar_mask"
}
"""The op whose tests guard a mode beside those of `sample`."""

FLAT_MODES = ("temperature", "top-p", "top-k+top-p", "min-p")
NUM_LOGPROBS = 5
_NUM_PROMPT, _NUM_OUTPUT = 512, 256


@dataclass(frozen=True, slots=True)
class Case:
    """One mode on one batch."""

    rows: str
    mode: str
    num_rows: int
    num_tokens: int
    steps: dict[str, Callable[[], object]]


def llm_like(num_rows: int, num_tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Zipf's law with exponent 1.5 over shuffled ids, and noise: a nucleus of 0.9 has some tens of tokens."""
    ranks = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(num_rows)])
    noise = torch.randn(num_rows, num_tokens, generator=generator) / 2
    return (15 - 1.5 * torch.log(ranks + 2.0) + noise).bfloat16()


def flat(num_rows: int, num_tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Gaussian: a nucleus of 0.9 has half the vocabulary."""
    return torch.randn(num_rows, num_tokens, generator=generator).bfloat16()


def make(rows: str, mode: str, logits: torch.Tensor) -> Case:
    """The steps of a mode on logits bfloat16 [N, V]."""
    num_rows, num_tokens = logits.shape
    params = _params(num_rows, **MODES[mode])  # type: ignore[arg-type]  # top_k is an int
    words = logits.view(torch.int16).numpy()
    steps: dict[str, Callable[[], object]] = {FLOOR: lambda: words.max(axis=1)}
    num_logprobs = NUM_LOGPROBS if mode == "logprobs" else None
    if mode == "penalties":
        steps |= _penalised(logits, params)
    elif mode.startswith("grammar"):
        steps |= _masked(logits, params, 0.02 if " 2 %" in mode else 0.5)
    else:
        metadata = stock.metadata_of(params, num_tokens, seeded="seeds" in mode, num_logprobs=num_logprobs)
        steps[STOCK] = lambda: stock.sample(logits, metadata)
        steps[TORCH] = lambda: plain_torch.sample(logits, params, num_logprobs=num_logprobs)
        steps[OURS] = lambda: cpu.sample(logits, params, num_logprobs=num_logprobs)
    return Case(rows, mode, num_rows, num_tokens, steps)


def _params(num_rows: int, temperature: float = 0.8, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Params:
    return Params(
        temperature=torch.full((num_rows,), temperature),
        top_k=torch.full((num_rows,), top_k, dtype=torch.int32),
        top_p=torch.full((num_rows,), top_p),
        min_p=torch.full((num_rows,), min_p),
        seed=torch.arange(num_rows),
        position=torch.arange(num_rows),
    )


def _penalised(logits: torch.Tensor, params: Params) -> dict[str, Callable[[], object]]:
    """All three penalties, a prompt of 512 tokens and an output of 256. Ours includes taking in the last token."""
    num_rows, num_tokens = logits.shape
    draw = np.random.default_rng(0)
    rules = [Rules(repetition=1.1, frequency=0.2, presence=0.1)] * num_rows
    prompts = draw.integers(num_tokens, size=(num_rows, _NUM_PROMPT)).tolist()
    outputs = draw.integers(num_tokens, size=(num_rows, _NUM_OUTPUT)).tolist()
    metadata = stock.metadata_of(params, num_tokens, rules=rules, prompts=prompts, outputs=outputs)
    penalties = Penalties(num_rows, num_tokens)
    for slot in range(num_rows):
        penalties.add_request(slot, rules[slot], prompts[slot], outputs[slot])
    slots, last = np.arange(num_rows), np.array([output[-1] for output in outputs], np.int32)
    fixed = penalties.edits(logits, slots)

    def ours() -> object:
        penalties.append(slots, last)
        return cpu.sample(logits, params, edits=penalties.edits(logits, slots))

    return {
        STOCK: lambda: stock.sample(logits, metadata),
        TORCH: lambda: plain_torch.sample(logits, params, edits=fixed),
        OURS: ours,
    }


def _masked(logits: torch.Tensor, params: Params, share: float) -> dict[str, Callable[[], object]]:
    """Half of the allowed tokens lie side by side, as the ids of a grammar's words often do."""
    num_rows, num_tokens = logits.shape
    allowed = np.random.default_rng(0).random((num_rows, -(-num_tokens // 32) * 32)) < share / 2
    allowed[:, : int(num_tokens * share / 2)] = True
    mask = torch.from_numpy(np.packbits(allowed, axis=1, bitorder="little").view(np.int32))
    metadata = stock.metadata_of(params, num_tokens)
    scratch = logits.clone()

    def theirs() -> object:
        stock.apply_grammar(scratch, mask)
        return stock.sample(scratch, metadata)

    return {
        STOCK: theirs,
        TORCH: lambda: plain_torch.sample(logits, params, mask),
        OURS: lambda: cpu.sample(logits, params, mask),
    }
