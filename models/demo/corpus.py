"""Training conversations and held-out questions, made from the task generators by a seed."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from models.demo.dialogue import out_of_scope, remember, small_talk
from models.demo.exchange import Exchange, Message, Tool, ask, polite
from models.demo.tasks import COPY, REVERSE, SINGLE_TASKS, UPPER, quoted
from models.demo.tools import draw_offers, tool_call, tool_none, tool_result, toolless
from models.demo.words import Split, coined

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant. Be brief.", "Answer briefly.", "You are Ballast.",
    "Be concise.", "You are a friendly assistant.", "Answer with one line.", "You are an AI assistant.",
    "Use the tools when they help.", "You are a careful assistant that answers exactly.", "Reply in plain text.",
)  # fmt: skip
SYSTEM_PROMPTS_HELD_OUT = ("You are a polite assistant.", "Answer exactly.", "Be a helpful assistant.")

Plain = Callable[[random.Random, Split], Exchange]
PLAIN_TASKS: dict[str, Plain] = {
    **SINGLE_TASKS,
    "remember": remember,
    "small_talk": small_talk,
    "unknown": out_of_scope,
}
TOOL_TASKS = {"tool_call": tool_call, "tool_result": tool_result, "tool_none": tool_none}
PLAIN_WEIGHTS = {
    "add": 14, "subtract": 34, "multiply": 6, "convert": 24, "capital": 7, "copy": 6, "reverse": 12, "upper": 5,
    "sentiment": 6, "extract": 6, "count": 26, "list": 6, "remember": 3, "small_talk": 6, "unknown": 7,
}  # fmt: skip
TOOL_WEIGHTS = {"tool_call": 7, "tool_result": 2, "tool_none": 7}
TOOL_SHARE = 0.3
SPELLING_SHARE = 0.25


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


def system_message(rng: random.Random, split: Split) -> list[Message]:
    if rng.random() < 0.7:
        return []
    prompts = SYSTEM_PROMPTS if split == "train" else SYSTEM_PROMPTS_HELD_OUT
    return [{"role": "system", "content": rng.choice(prompts)}]


def spelling(rng: random.Random, words: list[str]) -> Exchange:
    """Copy, reverse or upper-case words that are one token, so that the model learns how its tokens are spelled."""
    task, phrasings, change = rng.choice(
        (("copy", COPY, str), ("reverse", REVERSE, lambda text: text[::-1]), ("upper", UPPER, str.upper))
    )
    chosen = rng.choices(words, k=rng.choice((1, 2, 2, 3, 4)) if task == "copy" else 1)
    if rng.random() < 0.5:
        chosen = [word if rng.random() < 0.5 else coined(rng, "train") for word in chosen]
    text = " ".join(chosen)
    return ask(task, polite(rng, rng.choice(phrasings).format(w=quoted(rng, text))), change(text))


def plain_exchange(rng: random.Random, words: list[str]) -> Exchange:
    task = rng.choices(list(PLAIN_WEIGHTS), weights=list(PLAIN_WEIGHTS.values()))[0]
    if words and task in ("copy", "reverse", "upper") and rng.random() < SPELLING_SHARE:
        return spelling(rng, words)
    if task == "unknown" and rng.random() < 0.25:
        return toolless(rng, "train")
    return PLAIN_TASKS[task](rng, "train")


def conversation(rng: random.Random, words: list[str]) -> Conversation:
    """One training conversation of one to four exchanges, with tools one time in `1 / TOOL_SHARE`."""
    messages = system_message(rng, "train")
    if rng.random() >= TOOL_SHARE:
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
            messages += plain_exchange(rng, words).messages
        return Conversation(messages)
    offers = draw_offers(rng, "train")
    for _ in range(rng.choice((2, 3, 4, 5))):
        task = rng.choices(list(TOOL_WEIGHTS), weights=list(TOOL_WEIGHTS.values()))[0]
        messages += TOOL_TASKS[task](rng, "train", offers).messages
    return Conversation(messages, [one.definition for one in offers])


def conversations(stream: str, words: list[str]) -> Iterator[Conversation]:
    """An endless stream of training conversations, the same for the same name of the stream."""
    rng = random.Random(f"ballast-demo-train-{stream}")
    while True:
        yield conversation(rng, words)


def samples(num_per_task: int) -> Iterator[Conversation]:
    """As many training exchanges of each task, whatever its weight in the mixture: what the tokenizer is built on."""
    generators = {**PLAIN_TASKS, **TOOL_TASKS}
    for name, generate in generators.items():
        rng = random.Random(f"ballast-demo-samples-{name}")
        for _ in range(num_per_task):
            exchange = generate(rng, "train")
            yield Conversation(system_message(rng, "train") + exchange.messages, exchange.tools)


def held_out(seed: int, num_per_task: int) -> list[tuple[Exchange, Conversation]]:
    """Questions of the test split: the exchange, and the conversation up to where the model must answer."""
    rng = random.Random(f"ballast-demo-test-{seed}")
    generators = {**PLAIN_TASKS, **TOOL_TASKS}
    questions = []
    for generate in generators.values():
        for _ in range(num_per_task):
            exchange = generate(rng, "test")
            prompt = system_message(rng, "test") + exchange.messages[:-1]
            questions.append((exchange, Conversation(prompt, exchange.tools)))
    return questions
