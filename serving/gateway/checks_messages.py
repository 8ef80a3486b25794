"""Messages of chat completions (also in /tokenize): roles, text parts, tool calls. Members nobody reads are dropped."""

from typing import TYPE_CHECKING

from serving.gateway import refusal
from serving.gateway.checks import Array, Check, Either, Object, Refused, Text, Variants
from serving.gateway.checks_tools import CALLS

if TYPE_CHECKING:
    from serving.config.limits import Limits

TEXT_ONLY = "the models here take text only"
MEDIA_PARTS = dict.fromkeys(
    (
        "image_url", "input_image", "image", "image_embeds", "image_pil", "input_audio", "audio_url", "audio",
        "audio_embeds", "video_url", "video", "video_embeds", "file", "input_file", "document", "prompt_embeds",
    ),
    TEXT_ONLY,
)  # fmt: skip
MAX_ID_CHARS = 256

_TYPE = {"type": Text()}
PARTS = Array(
    Variants(
        "type",
        {
            "text": Object({**_TYPE, "text": Text()}, ("text",)),
            "refusal": Object({**_TYPE, "refusal": Text()}, ("refusal",)),
        },
        MEDIA_PARTS,
    ),
    min_items=1,
)
_CONTENT = Either(Text(), PARTS, list)
_SAID: dict[str, Check] = {"role": Text(), "content": _CONTENT, "name": Text(256)}
_LEGACY = "functions are served as tools: use role 'tool', 'tool_calls' and 'tools'"

#: What a message of each role may hold, and what it must.
ROLES: dict[str, Object] = {
    "system": Object(_SAID, ("content",)),
    "developer": Object(_SAID, ("content",)),
    "user": Object(_SAID, ("content",)),
    "assistant": Object(
        {
            **_SAID,
            "tool_calls": CALLS,
            "refusal": Text(),
            "reasoning": Text(),
            "reasoning_content": Text(),
            "audio": Refused(TEXT_ONLY),
            "function_call": Refused(_LEGACY),
        }
    ),
    "tool": Object({**_SAID, "tool_call_id": Text(MAX_ID_CHARS)}, ("content", "tool_call_id")),
}
_SAYS_SOMETHING = ("content", "tool_calls", "refusal", "reasoning", "reasoning_content")


def message(value: object, path: str, limits: "Limits") -> object:
    """One message of a chat."""
    if type(value) is not dict:
        raise refusal.wrong_type(path, "an object", value)
    role = value.get("role")
    shape = ROLES.get(role) if type(role) is str else None
    if shape is None:
        raise _bad_role(role, f"{path}.role")
    if len(value) == 2 and type(value.get("content")) is str and role != "tool":
        return value  # nearly every message; the general way costs ten times as much
    kept = shape(value, path, limits)
    if role == "assistant":
        if kept.get("tool_calls") == []:
            del kept["tool_calls"]
        if not any(name in kept for name in _SAYS_SOMETHING):
            raise refusal.missing(f"{path}.content")
    return kept


def _bad_role(role: object, path: str) -> Exception:
    if role is None:
        return refusal.missing(path)
    if type(role) is not str:
        return refusal.wrong_type(path, "a string", role)
    if role == "function":
        return refusal.unsupported_value(path, role, _LEGACY)
    return refusal.not_one_of(path, role, tuple(ROLES))


MESSAGES: Check = Array(message, "max_messages", min_items=1)
