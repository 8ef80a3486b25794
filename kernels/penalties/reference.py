"""What `penalties` must answer: dense, over the whole vocabulary."""

from collections.abc import Sequence

import torch

from kernels.penalties.rules import Rules


def penalised(logits: torch.Tensor, rules: Rules, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """One row of logits [V] as float32 after the rules, for the ids of the prompt and of the output so far."""
    num_tokens = len(logits)
    x = logits.to(torch.float32)
    for token, bias in rules.bias.items():
        x[token] += torch.tensor(bias, dtype=torch.float32)
    counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=num_tokens)
    seen = (torch.bincount(torch.tensor(prompt, dtype=torch.int64), minlength=num_tokens) > 0) | (counts > 0)
    repetition = torch.where(seen, torch.tensor(rules.repetition, dtype=torch.float32), 1.0)
    x = x * torch.where(x > 0, 1.0 / repetition, repetition)
    x = x - torch.tensor(rules.frequency, dtype=torch.float32) * counts
    return x - torch.tensor(rules.presence, dtype=torch.float32) * (counts > 0)
