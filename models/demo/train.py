"""Train the demo model from a seed and write the folder's model files.

    python -m models.demo.train --seed 0

Checkpoints go to `--state` and a run with the same arguments continues from there.
"""

import argparse
import itertools
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.demo.corpus import conversations
from models.demo.model import Llama, Shape
from models.demo.text import FOLDER, PAD, TURN_END, TURN_START, answer_spans, load_tokenizer, render, token_id
from models.demo.tokenizer import known_words

STEPS = 5600
CONVERSATIONS_PER_STEP = 48
STEPS_PER_POOL = 20
MICRO_BATCH_TOKENS = 1536
WARMUP_STEPS = 50
DECAY_SHARE = 0.4
MUON_LEARNING_RATE = 0.02
ADAM_LEARNING_RATE = 0.004
EDGE_WEIGHT = 0.5


@dataclass(frozen=True)
class Row:
    """One conversation as tokens; `weights[i]` is how much token i counts in the loss: 0 unless it is an answer's."""

    tokens: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """Rows of like length, padded: `tokens` `[rows, length]`, and of each prediction in it position, target, weight."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


def loss_weights(tokens: list[int], header: list[int], turn_end: int) -> list[float]:
    """Each answer counts as the square root of its length, so that long copies do not drown short sums.

    Its first token decides what kind of answer it is and its last one that it ends: they count at least `EDGE_WEIGHT`.
    """
    weights = [0.0] * len(tokens)
    for start, stop in answer_spans(tokens, header, turn_end):
        weights[start:stop] = [(stop - start) ** -0.5] * (stop - start)
        weights[start] = weights[stop - 1] = max(weights[start], EDGE_WEIGHT)
    return weights


def rows(stream: str) -> Iterator[Row]:
    tokenizer = load_tokenizer()
    words = known_words(tokenizer)
    header = tokenizer.encode(f"{TURN_START}assistant\n").ids
    turn_end = token_id(tokenizer, TURN_END)
    for one in conversations(stream, words):
        tokens = tokenizer.encode(render(one)).ids
        yield Row(tokens, loss_weights(tokens, header, turn_end))


def collate(group: list[Row], pad: int) -> Batch:
    length = max(len(row.tokens) for row in group) - 1
    tokens = torch.full((len(group), length + 1), pad)
    weights = torch.zeros((len(group), length + 1))
    for i, row in enumerate(group):
        tokens[i, : len(row.tokens)] = torch.tensor(row.tokens)
        weights[i, : len(row.weights)] = torch.tensor(row.weights)
    shifted = weights[:, 1:].flatten()
    positions = shifted.nonzero().squeeze(1)
    return Batch(tokens[:, :-1], positions, tokens[:, 1:].flatten()[positions], shifted[positions])


def micro_batches(group: list[Row], pad: int) -> list[Batch]:
    """Cut rows, sorted by length, into micro-batches of at most `MICRO_BATCH_TOKENS`, so that little is padding."""
    batches: list[Batch] = []
    pending: list[Row] = []
    for row in sorted(group, key=lambda row: len(row.tokens)):
        if pending and (len(pending) + 1) * len(row.tokens) > MICRO_BATCH_TOKENS:
            batches.append(collate(pending, pad))
            pending = []
        pending.append(row)
    return [*batches, collate(pending, pad)]


def steps_of_batches(seed: int, first_step: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step from `first_step` on.

    Those of `STEPS_PER_POOL` steps are cut together and dealt out, so that each step sees all lengths. Each pool of
    steps has a stream of its own, so that a run can continue from any step.
    """
    pad = token_id(load_tokenizer(), PAD)
    for pool in itertools.count(first_step // STEPS_PER_POOL):
        stream = f"{seed}-{pool}"
        batches = micro_batches(list(itertools.islice(rows(stream), STEPS_PER_POOL * CONVERSATIONS_PER_STEP)), pad)
        random.Random(stream).shuffle(batches)
        for i in range(first_step % STEPS_PER_POOL, STEPS_PER_POOL):
            yield batches[i::STEPS_PER_POOL]
        first_step = 0


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up, constant, then a linear decay over the last `DECAY_SHARE` of the steps."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


class Optimizers:
    """Muon (Jordan 2024) for the matrices inside the layers, AdamW for embeddings and norms."""

    def __init__(self, model: Llama) -> None:
        matrices = [p for p in model.layers.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
        muon = torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=0.01, momentum=0.95)
        adam = torch.optim.AdamW(others, lr=ADAM_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        self.all: tuple[torch.optim.Optimizer, ...] = (muon, adam)
        self.rates = (MUON_LEARNING_RATE, ADAM_LEARNING_RATE)

    def step(self, factor: float) -> None:
        for optimizer, rate in zip(self.all, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def train_step(model: Llama, batches: list[Batch]) -> float:
    """Accumulate gradients of the weighted mean loss per answer token over all micro-batches; returns that loss."""
    total_weight = sum(batch.weights.sum() for batch in batches)
    total = 0.0
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model(batch.tokens).flatten(0, 1)[batch.positions]
            logits = model.logits(hidden)
        losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
        loss = (losses * batch.weights).sum() / total_weight
        loss.backward()
        total += loss.item()
    return total


def export(model: Llama, weights: dict[str, Tensor], folder: Path) -> None:
    """Write weights and configuration as transformers and vLLM read them."""
    shape = model.shape
    tokenizer = load_tokenizer()
    tensors = {f"model.{name}": value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
    temporary = folder / "model.safetensors.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    os.replace(temporary, folder / "model.safetensors")
    end, pad = token_id(tokenizer, TURN_END), token_id(tokenizer, PAD)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers, "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_attention_heads, "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_position_embeddings, "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "initializer_range": 0.02,
        "bos_token_id": None, "eos_token_id": end, "pad_token_id": pad,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": end, "pad_token_id": pad, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


@dataclass
class State:
    """What a run needs to continue: step count, weights, optimiser state, running average of the last weights."""

    model: Llama
    optimizers: Optimizers
    average: dict[str, Tensor]
    step: int = 0

    def save(self, path: Path) -> None:
        saved = {
            "step": self.step, "model": self.model.state_dict(), "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers.all],
        }  # fmt: skip
        temporary = path.with_suffix(".tmp")
        torch.save(saved, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        self.step = saved["step"]
        self.model.load_state_dict(saved["model"])
        self.average = saved["average"]
        for optimizer, state in zip(self.optimizers.all, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)

    def update_average(self, decay: float) -> None:
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)


def new_state(seed: int) -> State:
    torch.manual_seed(seed)
    vocab_size = math.ceil(load_tokenizer().get_vocab_size() / 64) * 64
    model = Llama(Shape(vocab_size))
    return State(model, Optimizers(model), {name: value.clone() for name, value in model.state_dict().items()})


def train(state: State, seed: int, steps: int, path: Path, checkpoint_steps: int) -> None:
    """Run the remaining steps."""
    source = steps_of_batches(seed, state.step)
    state.model.compile(dynamic=True)
    started, num_tokens, losses = time.monotonic(), 0, []
    while state.step < steps:
        batches = next(source)
        losses.append(train_step(state.model, batches))
        state.optimizers.step(learning_rate_factor(state.step, steps))
        state.update_average(0.0 if state.step < 100 else 0.98)
        state.step += 1
        num_tokens += sum(batch.tokens.numel() for batch in batches)
        if state.step % 20 == 0:
            rate = num_tokens / (time.monotonic() - started)
            print(f"step {state.step}/{steps} loss {sum(losses) / len(losses):.4f} {rate:.0f} tokens/s", flush=True)
            losses.clear()
        if state.step % checkpoint_steps == 0 or state.step == steps:
            state.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model and write its files.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--state", type=Path, default=Path("demo-train.pt"), help="checkpoint to continue from")
    parser.add_argument("--checkpoint-steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the finished model")
    parser.add_argument("--export-only", action="store_true", help="write the files from the checkpoint as it is")
    parser.add_argument("--threads", type=int, default=1, help="on a busy machine one thread is the fastest")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    state = new_state(arguments.seed)
    if arguments.state.exists():
        state.load(arguments.state)
    if not arguments.export_only:
        train(state, arguments.seed, arguments.steps, arguments.state, arguments.checkpoint_steps)
    export(state.model, state.average, arguments.out)


if __name__ == "__main__":
    main()
