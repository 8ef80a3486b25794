"""Prompts of completions, inputs of embeddings, tokens to decode: strings or token ids, one or many."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.gateway import refusal
from serving.gateway.checks import INT32_MAX, Integer, at_most, named

if TYPE_CHECKING:
    from serving.config.limits import Limits

_INT_ONLY = {int}


@dataclass(frozen=True, slots=True)
class Prompts:
    """A string, an array of token ids, or an array of either; at most ``max_prompts`` of them."""

    max_prompts: str

    def __call__(self, value: object, path: str, limits: "Limits", /) -> object:
        if type(value) is str:
            return value
        if type(value) is not list:
            raise refusal.wrong_type(path, "a string or an array", value)
        if not value:
            raise refusal.too_short(path, "array")
        if type(value[0]) is int:
            return tokens(value, path, limits)
        if len(value) > (most := at_most(self.max_prompts, limits)):
            raise refusal.too_long(path, "array", len(value), most)
        kind = type(value[0])
        for index, item in enumerate(value):
            if type(item) is not kind or kind not in (str, list):
                raise refusal.wrong_type(f"{path}[{index}]", "a string or token ids, as in the first item", item)
            if type(item) is list:
                tokens(item, f"{path}[{index}]", limits)
        return value

    def __str__(self) -> str:
        return f"string, array of token ids, or array of at most {named(self.max_prompts)} of one kind"


def tokens(value: object, path: str, limits: "Limits") -> object:
    """Array of token ids, at least one."""
    if type(value) is not list:
        raise refusal.wrong_type(path, "an array of token ids", value)
    if not value:
        raise refusal.too_short(path, "array")
    if set(map(type, value)) != _INT_ONLY:  # one pass in C: a prompt may hold 100,000 ids
        index = next(index for index, item in enumerate(value) if type(item) is not int)
        raise refusal.wrong_type(f"{path}[{index}]", "an integer", value[index])
    if min(value) < 0 or max(value) > INT32_MAX:
        index = next(index for index, item in enumerate(value) if not 0 <= item <= INT32_MAX)
        Integer(0)(value[index], f"{path}[{index}]", limits)
    return value


def num_prompts(value: object) -> int:
    """How many prompts a checked ``prompt`` holds."""
    return len(value) if type(value) is list and type(value[0]) is not int else 1


def num_tokens(value: object) -> int:
    """Tokens of the longest prompt that is given as token ids; 0 when all are text."""
    if type(value) is not list:
        return 0
    if type(value[0]) is int:
        return len(value)
    return max((len(item) for item in value if type(item) is list), default=0)
