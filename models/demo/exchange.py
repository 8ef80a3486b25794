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


QUESTION_WORDS = frozenset(("What", "What's", "How", "Which", "Who", "Is", "Do", "Has", "Where", "I", "The", "Today's"))


def polite(rng: random.Random, text: str) -> str:
    """Vary how a request opens and ends without changing what it asks."""
    kind = rng.random()
    lowered = text[0].lower() + text[1:]
    if kind < 0.18 and text[0].isupper() and text.split()[0] not in QUESTION_WORDS:
        text = ("Please " if kind < 0.12 else "Can you ") + lowered
    elif kind < 0.24:
        text = lowered
    if rng.random() < 0.2 and text[-1] in ".?":
        text = text[:-1]
    return text
