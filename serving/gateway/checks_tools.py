"""Tools a client offers, its choice among them, and the calls it hands back."""

from typing import TYPE_CHECKING

from serving.gateway import refusal
from serving.gateway.checks import Anything, Array, Boolean, Check, Either, Object, OneOf, Text, Variants
from serving.gateway.checks_schema import Schema
from serving.gateway.json_body import outside_strings

if TYPE_CHECKING:
    from serving.config.limits import Limits

MAX_NAME_CHARS = 128
_MAX_ARGUMENTS_DEPTH = 64
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

NAME = Text(MAX_NAME_CHARS, min_chars=1)
TOOL_SCHEMA = Schema(is_compiled=False)
_ONLY_FUNCTIONS = "only tools of type 'function' are served; run other tools in your client"

OTHER_TOOLS = dict.fromkeys(
    (
        "custom", "file_search", "web_search", "web_search_preview", "web_search_2025_08_26", "computer",
        "computer_use_preview", "mcp", "code_interpreter", "image_generation", "local_shell", "shell", "namespace",
        "tool_search", "apply_patch", "programmatic_tool_calling", "allowed_tools",
    ),
    _ONLY_FUNCTIONS,
)  # fmt: skip


def arguments(value: object, path: str, limits: "Limits") -> str:
    """JSON as a string, nested at most 64 deep."""
    text = Text()(value, path, limits)
    if text.count("{") + text.count("[") <= _MAX_ARGUMENTS_DEPTH:
        return text
    brackets = outside_strings(text.encode()).translate(_AS_SQUARE, _NOT_BRACKETS)
    for _ in range(_MAX_ARGUMENTS_DEPTH):
        inner = brackets.replace(b"[]", b"")  # takes the innermost level away
        if len(inner) == len(brackets):
            break
        brackets = inner
    # What remains was never closed, or lies deeper. The engine's parser recurses on both; a cut-off call may pass.
    if b"[]" in brackets or brackets.count(b"[") > _MAX_ARGUMENTS_DEPTH:
        raise refusal.invalid(path, f"nested deeper than {_MAX_ARGUMENTS_DEPTH} levels")
    return text


_FUNCTION_MEMBERS: dict[str, Check] = {
    "name": NAME,
    "description": Text(),
    "parameters": TOOL_SCHEMA,
    "strict": Boolean(),
}
_TYPE = {"type": Text()}

#: ``tools`` of chat completions.
CHAT_TOOLS = Array(
    Variants(
        "type",
        {"function": Object({**_TYPE, "function": Object(_FUNCTION_MEMBERS, ("name",))}, ("function",))},
        OTHER_TOOLS,
    ),
    "max_tools",
)
#: ``tools`` of responses: the same, flat.
RESPONSES_TOOLS = Array(
    Variants("type", {"function": Object({**_TYPE, **_FUNCTION_MEMBERS}, ("name",))}, OTHER_TOOLS), "max_tools"
)
#: ``tool_choice``, one form per endpoint.
_WORDS = OneOf("none", "auto", "required")
CHAT_TOOL_CHOICE = Either(
    _WORDS,
    Variants(
        "type",
        {"function": Object({**_TYPE, "function": Object({"name": NAME}, ("name",))}, ("function",))},
        OTHER_TOOLS,
    ),
    dict,
)
RESPONSES_TOOL_CHOICE = Either(
    _WORDS, Variants("type", {"function": Object({**_TYPE, "name": NAME}, ("name",))}, OTHER_TOOLS), dict
)
#: ``tool_calls`` of an assistant's message.
CALLS = Array(
    Variants(
        "type",
        {
            "function": Object(
                {
                    **_TYPE,
                    "id": Text(256),
                    "index": Anything(),
                    "function": Object({"name": NAME, "arguments": arguments}, ("name", "arguments")),
                },
                ("id", "function"),
            )
        },
        {"custom": _ONLY_FUNCTIONS},
        default="function",
    ),
    "max_tools",
)
