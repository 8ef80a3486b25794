"""Measure the demo model on held-out questions: greedy answers, exact match per task.

python -m models.demo.evaluate                                  # this folder's weights, in torch
python -m models.demo.evaluate --url http://127.0.0.1:8000/v1   # an OpenAI-compatible server that serves them
"""

import argparse
import hashlib
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from models.demo.corpus import Conversation, held_out
from models.demo.exchange import Exchange, Message
from models.demo.text import FOLDER, TURN_END, load_tokenizer, render, token_id

MAX_NEW_TOKENS = 1024
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """What a model said: text, the calls `(name, arguments)` that it made, and whether it stopped by itself."""

    text: str
    calls: list[tuple[str, dict[str, Any]]]
    stopped: bool


class Answerer(Protocol):
    def answer(self, prompts: list[Conversation]) -> list[Reply]: ...


def parse_reply(text: str, stopped: bool) -> Reply:
    """Read calls as vLLM's hermes parser does; a malformed one leaves the text as it is."""
    try:
        calls = [json.loads(body) for body in CALL.findall(text)]
        return Reply(CALL.sub("", text).strip(), [(call["name"], call["arguments"]) for call in calls], stopped)
    except (ValueError, KeyError, TypeError):
        return Reply(text, [], stopped)


class TorchAnswerer:
    """Greedy decoding with transformers, in batches padded on the left."""

    def __init__(self, folder: Path, batch_size: int = 64) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = load_tokenizer()
        self.batch_size = batch_size

    def answer(self, prompts: list[Conversation]) -> list[Reply]:
        rows = [self.tokenizer.encode(render(one, add_generation_prompt=True)).ids for one in prompts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        replies: dict[int, Reply] = {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            replies.update(zip(part, self.generate([rows[i] for i in part]), strict=True))
        return [replies[i] for i in range(len(rows))]

    def generate(self, rows: list[list[int]]) -> list[Reply]:
        end = token_id(self.tokenizer, TURN_END)
        width = max(map(len, rows))
        tokens = self.torch.tensor([[end] * (width - len(row)) + row for row in rows])
        mask = self.torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = self.model.generate(tokens, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        replies = []
        for row in out[:, width:].tolist():
            stopped = end in row
            kept = row[: row.index(end)] if stopped else row
            replies.append(parse_reply(self.tokenizer.decode(kept, skip_special_tokens=False), stopped))
        return replies


class ServerAnswerer:
    """Greedy decoding by a server, with the official client; tools go in as `tools`, calls come back parsed."""

    def __init__(self, url: str, model: str | None, api_key: str, num_parallel: int = 16) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=url, api_key=api_key)
        self.model = model or self.client.models.list().data[0].id
        self.num_parallel = num_parallel

    def answer(self, prompts: list[Conversation]) -> list[Reply]:
        with ThreadPoolExecutor(self.num_parallel) as pool:
            return list(pool.map(self.one, prompts))

    def one(self, prompt: Conversation) -> Reply:
        request: dict[str, Any] = {"messages": prompt.messages, "max_tokens": MAX_NEW_TOKENS, "temperature": 0}
        if prompt.tools:
            request["tools"] = prompt.tools
        choice = self.client.chat.completions.create(model=self.model, **request).choices[0]
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
        return Reply(choice.message.content or "", calls, choice.finish_reason in ("stop", "tool_calls"))


def is_right(expected: Message, reply: Reply) -> bool:
    """Exact match: the same text, or the same calls with equal arguments; and the model stopped by itself."""
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in expected.get("tool_calls", [])
    ]
    return reply.stopped and reply.calls == calls and reply.text.strip() == (expected["content"] or "")


def score(exchanges: list[Exchange], replies: list[Reply]) -> dict[str, dict[str, float]]:
    """Per task and overall: how many were asked, and the share answered exactly."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for exchange, reply in zip(exchanges, replies, strict=True):
        for name in (exchange.task, "overall"):
            asked[name] += 1
            right[name] += is_right(exchange.answer, reply)
    return {name: {"num_questions": asked[name], "accuracy": round(right[name] / asked[name], 4)} for name in asked}


def report(table: dict[str, dict[str, float]]) -> str:
    lines = [f"{'task':<12} {'questions':>9} {'exact':>7}"]
    lines += [f"{name:<12} {row['num_questions']:>9} {row['accuracy']:>7.1%}" for name, row in sorted(table.items())]
    return "\n".join(lines)


def show_mistakes(questions: list[tuple[Exchange, Conversation]], replies: list[Reply], limit: int) -> None:
    shown: Counter[str] = Counter()
    for (exchange, prompt), reply in zip(questions, replies, strict=True):
        if not is_right(exchange.answer, reply) and shown[exchange.task] < limit:
            shown[exchange.task] += 1
            wanted = exchange.answer["content"] or exchange.answer["tool_calls"][0]["function"]
            print(f"{exchange.task}: {prompt.messages[-1]['content']!r}\n  wanted {wanted}\n  got    {reply}")


def weights_digest(arguments: argparse.Namespace) -> str | None:
    """Which weights the figures belong to; a server does not say."""
    if arguments.url:
        return None
    return hashlib.sha256((arguments.folder / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out accuracy of the demo model.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the weights lie")
    parser.add_argument("--url", help="ask a server instead, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="name of the model on the server; default: the first it lists")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", "none"))
    parser.add_argument("--questions", type=int, default=200, help="per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mistakes", type=int, default=0, help="show this many wrong answers per task")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    answerer: Answerer
    if arguments.url:
        answerer = ServerAnswerer(arguments.url, arguments.model, arguments.api_key)
    else:
        answerer = TorchAnswerer(arguments.folder)
    questions = held_out(arguments.seed, arguments.questions)
    replies = answerer.answer([prompt for _, prompt in questions])
    table = score([exchange for exchange, _ in questions], replies)
    show_mistakes(questions, replies, arguments.mistakes)
    print(report(table))
    if arguments.json:
        result = {"seed": arguments.seed, "temperature": 0, "weights_sha256": weights_digest(arguments), "tasks": table}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
