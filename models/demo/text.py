"""From a conversation to the text and the tokens that the model sees."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from models.demo.corpus import Conversation

FOLDER = Path(__file__).parent
TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def chat_template() -> jinja2.Template:
    """The shipped chat template, set up as transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = to_json
    return environment.from_string((FOLDER / "chat_template.jinja").read_text())


def render(conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
    return chat_template().render(
        messages=conversation.messages, tools=conversation.tools, add_generation_prompt=add_generation_prompt
    )


def load_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def answer_spans(tokens: list[int], header: list[int], turn_end: int) -> list[tuple[int, int]]:
    """Where the assistant writes: `[start, stop)` after each `header`, up to and with the end of the turn."""
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for i, token in enumerate(tokens):
        if start is None and tokens[max(0, i + 1 - len(header)) : i + 1] == header:
            start = i + 1
        elif start is not None and token == turn_end:
            spans.append((start, i + 1))
            start = None
    return spans
