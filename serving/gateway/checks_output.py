"""What shape a client wants the answer in: response formats and vLLM's ``structured_outputs``."""

from typing import TYPE_CHECKING

import orjson

from serving.gateway import refusal
from serving.gateway.checks import Array, Boolean, Check, IfAllowed, Object, OneOf, Text, Variants
from serving.gateway.checks_schema import Schema

if TYPE_CHECKING:
    from serving.config.limits import Limits

OUTPUT_SCHEMA = Schema(is_compiled=True)
_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_MAX_CHOICE_CHARS = 1024

_TYPE = {"type": Text()}
_NAME = Text(64, min_chars=1)


def structural_tag(value: object, path: str, limits: "Limits") -> object:
    """A structural tag, bounded in characters."""
    size = len(orjson.dumps(value))
    if size > limits.max_pattern_chars:
        raise refusal.too_long(path, "string", size, limits.max_pattern_chars)
    return value


_PLAIN = Object(_TYPE, is_closed=True)
_NAMED_SCHEMA: dict[str, Check] = {"name": _NAME, "description": Text(), "schema": OUTPUT_SCHEMA, "strict": Boolean()}
_TAG = IfAllowed("allow_grammar", structural_tag)

#: ``response_format`` of chat and completions.
RESPONSE_FORMAT = Variants(
    "type",
    {
        "text": _PLAIN,
        "json_object": _PLAIN,
        "json_schema": Object(
            {**_TYPE, "json_schema": Object(_NAMED_SCHEMA, ("name", "schema"), is_closed=True)},
            ("json_schema",),
            is_closed=True,
        ),
        "structural_tag": _TAG,
    },
)
#: ``text`` of responses.
RESPONSES_TEXT = Object(
    {
        "format": Variants(
            "type",
            {
                "text": _PLAIN,
                "json_object": _PLAIN,
                "json_schema": Object({**_TYPE, **_NAMED_SCHEMA}, ("name", "schema"), is_closed=True),
            },
        ),
        "verbosity": OneOf("low", "medium", "high"),
    },
    is_closed=True,
)
#: ``output_config`` of Anthropic messages.
OUTPUT_CONFIG = Object(
    {
        "effort": OneOf("low", "medium", "high", "xhigh", "max"),
        "format": Variants(
            "type", {"json_schema": Object({**_TYPE, "schema": OUTPUT_SCHEMA}, ("schema",), is_closed=True)}
        ),
    }
)


def schema_or_text(value: object, path: str, limits: "Limits") -> object:
    """A JSON schema, or one as a string."""
    if type(value) is not str:
        return OUTPUT_SCHEMA(value, path, limits)
    text = Text("max_schema_bytes")(value, path, limits)
    try:
        schema: object = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise refusal.invalid(path, "the string is not JSON") from None
    return OUTPUT_SCHEMA(schema, path, limits)


_PATTERN = IfAllowed("allow_regex", Text("max_pattern_chars"))
_STRUCTURED = Object(
    {
        "json": schema_or_text,
        "regex": _PATTERN,
        "choice": Array(Text(_MAX_CHOICE_CHARS), "max_schema_enum", min_items=1),
        "grammar": IfAllowed("allow_grammar", Text("max_pattern_chars")),
        "json_object": Boolean(),
        "structural_tag": _TAG,
        "disable_any_whitespace": Boolean(),
        "disable_additional_properties": Boolean(),
        "whitespace_pattern": _PATTERN,
    },
    is_closed=True,
)


def structured_outputs(value: object, path: str, limits: "Limits") -> object:
    """Object with one of `json`, `choice`, `json_object`; where allowed, `regex`, `grammar`, `structural_tag`."""
    kept = _STRUCTURED(value, path, limits)
    if sum(name in kept for name in _CONSTRAINTS) != 1:
        raise refusal.invalid(path, "expected exactly one of " + ", ".join(_CONSTRAINTS))
    return kept
