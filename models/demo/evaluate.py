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
from typing import Any

from tokenizers import Tokenizer

from models.demo.corpus import Conversation, held_out
from models.demo.exchange import Exchange, Message
from models.demo.text import FOLDER, load_tokenizer, render

MAX_NEW_TOKENS = 1024
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """What a model said: text, the calls `(name, arguments)` that it made, and whether it stopped by itself."""

    text: str
    calls: list[tuple[str, dict[str, Any]]]
    stopped: bool


def parse_reply(text: str, stopped: bool) -> Reply:
    """Read calls as vLLM's hermes parser does; a malformed one leaves the text as it is."""
    try:
        calls = [json.loads(body) for body in CALL.findall(text)]
        return Reply(CALL.sub("", text).strip(), [(call["name"], call["arguments"]) for call in calls], stopped)
    except (ValueError, KeyError, TypeError):
        return Reply(text, [], stopped)


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


def encode_answer(tokenizer: Tokenizer, exchange: Exchange, prompt: Conversation) -> tuple[list[int], int]:
    """Tokens of the prompt with the right answer up to the end of its turn, and how many of them are the prompt's."""
    answered = Conversation([*prompt.messages, exchange.answer], prompt.tools)
    tokens: list[int] = tokenizer.encode(render(answered).removesuffix("\n")).ids
    return tokens, len(tokenizer.encode(render(prompt, add_generation_prompt=True)).ids)


def judge_in_one_pass(folder: Path, questions: list[tuple[Exchange, Conversation]]) -> list[bool]:
    """Whether greedy decoding gives each right answer: each of its tokens must be the likeliest one.

    One forward pass per question instead of one per token.
    """
    import torch
    from safetensors.torch import load_file

    from models.demo.model import Llama, Shape

    config = json.loads((folder / "config.json").read_text())
    model = Llama(Shape(**{name: config[name] for name in Shape.__dataclass_fields__ if name in config}))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    tokenizer = load_tokenizer()
    verdicts = []
    with torch.no_grad():
        for exchange, prompt in questions:
            tokens, num_prompt = encode_answer(tokenizer, exchange, prompt)
            hidden = model(torch.tensor([tokens[:-1]]))[0, num_prompt - 1 :]
            verdicts.append(bool((model.logits(hidden).argmax(-1) == torch.tensor(tokens[num_prompt:])).all()))
    return verdicts


def score(exchanges: list[Exchange], verdicts: list[bool]) -> dict[str, dict[str, float]]:
    """Per task and overall: how many were asked, and the share answered exactly."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for exchange, verdict in zip(exchanges, verdicts, strict=True):
        for name in (exchange.task, "overall"):
            asked[name] += 1
            right[name] += verdict
    return {name: {"num_questions": asked[name], "accuracy": round(right[name] / asked[name], 4)} for name in asked}


def report(table: dict[str, dict[str, float]]) -> str:
    lines = [f"{'task':<12} {'questions':>9} {'exact':>7}"]
    lines += [f"{name:<12} {row['num_questions']:>9} {row['accuracy']:>7.1%}" for name, row in sorted(table.items())]
    return "\n".join(lines)


def ask_server(arguments: argparse.Namespace, questions: list[tuple[Exchange, Conversation]]) -> list[bool]:
    """Put the questions to a server; with `--mistakes`, print that many wrong answers per task."""
    replies = ServerAnswerer(arguments.url, arguments.model, arguments.api_key).answer(
        [prompt for _, prompt in questions]
    )
    verdicts = []
    shown: Counter[str] = Counter()
    for (exchange, prompt), reply in zip(questions, replies, strict=True):
        verdicts.append(is_right(exchange.answer, reply))
        if not verdicts[-1] and shown[exchange.task] < arguments.mistakes:
            shown[exchange.task] += 1
            wanted = exchange.answer["content"] or exchange.answer["tool_calls"][0]["function"]
            print(f"{exchange.task}: {prompt.messages[-1]['content']!r}\n  wanted {wanted}\n  got    {reply}")
    return verdicts


def update_readme(readme: Path, table: dict[str, dict[str, float]]) -> None:
    """Put the figures into the rows of the README's table, `| task | exact | questions | …`."""
    text = readme.read_text()
    for name, row in table.items():
        figures = f"| {name} | {row['accuracy']:.1%} | {row['num_questions']} |"
        text = re.sub(rf"^\| {name} \| [\d.]+% \| \d+ \|", figures, text, flags=re.MULTILINE)
    readme.write_text(text)


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
    parser.add_argument("--mistakes", type=int, default=0, help="show this many wrong answers of a server per task")
    parser.add_argument("--readme", type=Path, help="put the figures into the table of this file")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    questions = held_out(arguments.seed, arguments.questions)
    verdicts = ask_server(arguments, questions) if arguments.url else judge_in_one_pass(arguments.folder, questions)
    table = score([exchange for exchange, _ in questions], verdicts)
    print(report(table))
    if arguments.readme:
        update_readme(arguments.readme, table)
    if arguments.json:
        result = {"seed": arguments.seed, "temperature": 0, "weights_sha256": weights_digest(arguments), "tasks": table}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
