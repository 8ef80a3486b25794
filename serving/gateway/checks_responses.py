"""Input items and options of the Responses API. It is stateless here: items that point at stored ones are refused."""

from typing import TYPE_CHECKING

from serving.gateway import refusal
from serving.gateway.checks import Array, Either, Object, OneOf, Text, Variants
from serving.gateway.checks_messages import MAX_ID_CHARS, MEDIA_PARTS
from serving.gateway.checks_tools import NAME, OTHER_TOOLS, arguments

if TYPE_CHECKING:
    from serving.config.limits import Limits

STATELESS = "nothing is stored here; send the whole conversation"
LOGPROBS = "message.output_text.logprobs"

_TYPE = {"type": Text()}
_ID = Text(MAX_ID_CHARS)
_STATUS = OneOf("in_progress", "completed", "incomplete")
_TEXT_PART = Object({**_TYPE, "text": Text()}, ("text",))
_INPUT_PARTS = Array(Variants("type", {"input_text": _TEXT_PART}, MEDIA_PARTS), min_items=1)
_OUTPUT_PARTS = Array(
    Variants(
        "type",
        {
            "output_text": _TEXT_PART,
            "text": _TEXT_PART,
            "input_text": _TEXT_PART,
            "refusal": Object({**_TYPE, "refusal": Text()}, ("refusal",)),
        },
        MEDIA_PARTS,
    ),
    min_items=1,
)
_INPUT_MESSAGE = Object({**_TYPE, "role": Text(), "content": Either(Text(), _INPUT_PARTS, list)}, ("content",))
_OUTPUT_MESSAGE = Object(
    {**_TYPE, "role": Text(), "id": _ID, "status": _STATUS, "content": Either(Text(), _OUTPUT_PARTS, list)},
    ("content",),
)
_ROLES = ("user", "assistant", "system", "developer")


def _message(value: object, path: str, limits: "Limits") -> object:
    assert type(value) is dict
    role = value.get("role")
    if role is None:
        raise refusal.missing(f"{path}.role")
    if OneOf(*_ROLES)(role, f"{path}.role", limits) != "assistant":
        return _INPUT_MESSAGE(value, path, limits)
    kept = _OUTPUT_MESSAGE(value, path, limits)
    if type(kept["content"]) is list:
        # The engine reads the first part only, and no refusal: one part has it all.
        text = "".join(part.get("text", part.get("refusal")) for part in kept["content"])
        kept["content"] = [{"type": "output_text", "text": text, "annotations": []}]
    return kept


_REASONING = Object(
    {
        **_TYPE,
        "id": _ID,
        "status": _STATUS,
        "summary": Array(Object({**_TYPE, "text": Text()}, ("type", "text"))),
        "content": Array(Object({**_TYPE, "text": Text()}, ("type", "text"))),
    },
    ("summary",),
)
_OUTPUT = Either(Text(), _INPUT_PARTS, list)
_ITEM = Variants(
    "type",
    {
        "message": _message,
        "reasoning": _REASONING,
        "function_call": Object(
            {**_TYPE, "id": _ID, "call_id": _ID, "status": _STATUS, "name": NAME, "arguments": arguments},
            ("call_id", "name", "arguments"),
        ),
        "function_call_output": Object(
            {**_TYPE, "id": _ID, "call_id": _ID, "status": _STATUS, "output": _OUTPUT}, ("call_id", "output")
        ),
    },
    {
        **dict.fromkeys(("item_reference", "compaction", "compaction_trigger"), STATELESS),
        **dict.fromkeys(
            (
                "file_search_call", "web_search_call", "computer_call", "computer_call_output", "image_generation_call",
                "code_interpreter_call", "local_shell_call", "local_shell_call_output", "shell_call",
                "shell_call_output", "apply_patch_call", "apply_patch_call_output", "mcp_list_tools",
                "mcp_approval_request", "mcp_approval_response", "mcp_call", "custom_tool_call",
                "custom_tool_call_output", "tool_search_call", "tool_search_output", "additional_tools", "program",
                "program_output",
            ),
            OTHER_TOOLS["custom"],
        ),
    },
    default="message",
)  # fmt: skip

#: ``input``.
INPUT = Either(Text(), Array(_ITEM, "max_messages", min_items=1), list)
#: ``reasoning``; its other members speak of summaries and modes that the engine does not make.
REASONING = Object(
    {
        "effort": OneOf("none", "minimal", "low", "medium", "high", "xhigh", "max"),
        "summary": OneOf("auto", "concise", "detailed"),
        "generate_summary": OneOf("auto", "concise", "detailed"),
    }
)

_INCLUDES = Array(
    OneOf(
        LOGPROBS, "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
        "web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    ),
    16,
)  # fmt: skip


def include(value: object, path: str, limits: "Limits") -> object:
    """Array; only `message.output_text.logprobs` has an effect, the rest speaks of what is never there."""
    return [name for name in _INCLUDES(value, path, limits) if name == LOGPROBS]
