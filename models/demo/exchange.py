"""The unit that every task generator makes: one exchange of chat messages that ends with the right answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from models.demo.words import Split

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Exchange:
    """`messages` begin with a user turn and end with the assistant turn to be learnt; `tools` are in OpenAI form."""

    task: str
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)

    @property
    def answer(self) -> Message:
        return self.messages[-1]


Generator = Callable[[random.Random, Split], Exchange]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def ask(task: str, question: str, answer: str) -> Exchange:
    return Exchange(task, [user(question), assistant(answer)])


def polite(rng: random.Random, text: str) -> str:
    """Vary how a request opens and ends without changing what it asks."""
    kind = rng.random()
    if kind < 0.12:
        text = "Please " + text[0].lower() + text[1:]
    elif kind < 0.18:
        text = "Can you " + text[0].lower() + text[1:]
    elif kind < 0.24:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2 and text[-1] in ".?":
        text = text[:-1]
    return text
