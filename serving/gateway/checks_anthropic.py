"""Messages, tools and options of the Anthropic Messages API."""

from serving.gateway.checks import Array, Boolean, Either, Object, OneOf, OpenObject, Text, Variants
from serving.gateway.checks_messages import MAX_ID_CHARS, TEXT_ONLY
from serving.gateway.checks_tools import NAME, TOOL_SCHEMA

_SERVER_TOOLS = "tools that the server would run are not served; run them in your client"
_TYPE = {"type": Text()}
_ID = Text(MAX_ID_CHARS)
_MEDIA = dict.fromkeys(("image", "document", "search_result", "container_upload"), TEXT_ONLY)
_TEXT_BLOCK = Object({**_TYPE, "text": Text()}, ("text",))

_RESULT_BLOCKS = Array(
    Variants("type", {"text": _TEXT_BLOCK, "tool_reference": Object({**_TYPE, "tool_name": NAME})}, _MEDIA)
)
_BLOCK = Variants(
    "type",
    {
        "text": _TEXT_BLOCK,
        "thinking": Object({**_TYPE, "thinking": Text(), "signature": Text()}, ("thinking",)),
        "redacted_thinking": Object({**_TYPE, "data": Text()}),
        "tool_use": Object({**_TYPE, "id": _ID, "name": NAME, "input": OpenObject()}, ("id", "name", "input")),
        "tool_result": Object(
            {**_TYPE, "tool_use_id": _ID, "is_error": Boolean(), "content": Either(Text(), _RESULT_BLOCKS, list)},
            ("tool_use_id",),
        ),
    },
    {
        **_MEDIA,
        **dict.fromkeys(
            (
                "server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result",
                "bash_code_execution_tool_result", "text_editor_code_execution_tool_result", "tool_search_tool_result",
                "mcp_tool_use", "mcp_tool_result", "compaction",
            ),
            _SERVER_TOOLS,
        ),
    },
)  # fmt: skip
_BLOCKS = Array(_BLOCK)

MESSAGES = Array(
    Object(
        {"role": OneOf("user", "assistant", "system"), "content": Either(Text(), _BLOCKS, list)}, ("role", "content")
    ),
    "max_messages",
    min_items=1,
)
SYSTEM = Either(Text(), Array(Variants("type", {"text": _TEXT_BLOCK}, _MEDIA)), list)

_CUSTOM_TOOL = Object(
    {
        "name": NAME,
        "description": Text(),
        "input_schema": TOOL_SCHEMA,
        "strict": Boolean(),
        "defer_loading": Boolean(),
    },
    ("name", "input_schema"),
)


class _OtherTools(dict[str, str]):
    """Every other type of tool is dated (``bash_20250124``), so no list would be whole."""

    def __missing__(self, key: str) -> str:
        return _SERVER_TOOLS

    def __contains__(self, key: object) -> bool:
        return True


TOOLS = Array(Variants("type", {"custom": _CUSTOM_TOOL}, _OtherTools(), default="custom"), "max_tools")
_NO_PARALLEL = {"disable_parallel_tool_use": Boolean()}
TOOL_CHOICE = Variants(
    "type",
    {
        "auto": Object({**_TYPE, **_NO_PARALLEL}),
        "any": Object({**_TYPE, **_NO_PARALLEL}),
        "none": Object(_TYPE),
        "tool": Object({**_TYPE, **_NO_PARALLEL, "name": NAME}, ("name",)),
    },
)
