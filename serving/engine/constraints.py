"""The constraints on its answer that a request carries: JSON schemas, patterns, grammars and choices, each with the
path of the field it stands in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

Json = Mapping[str, Any]

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


@dataclass(frozen=True, slots=True)
class Constraint:
    """``fields`` are those of vLLM's ``StructuredOutputsParams``."""

    param: str
    fields: Json


def canonical(fields: Json) -> Json:
    """``fields`` in one order and without what is not set, so that equal constraints are equal bytes."""
    values = ((name, fields.get(name)) for name in (*_KINDS, *_OPTIONS))
    return {name: value for name, value in values if value is not None and value is not False}


def constraints_of(body: Json) -> list[Constraint]:
    """Those of a checked request of any endpoint; a field's name says whose it is."""
    return [*_of_answer(body), *_of_tools(body)]


def _of_answer(body: Json) -> Iterator[Constraint]:
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        yield _schema("response_format.json_schema.schema", wanted["json_schema"]["schema"])
    elif wanted.get("type") == "structural_tag":
        yield Constraint("response_format", {"structural_tag": orjson.dumps(wanted).decode()})
    # Of responses and of messages: the same, under other names.
    for path in ("text", "output_config"):
        form = (body.get(path) or {}).get("format") or {}
        if form.get("type") == "json_schema":
            yield _schema(f"{path}.format.schema", form["schema"])
    outputs = body.get("structured_outputs") or {}
    for kind in _KINDS:
        if kind in outputs:
            yield Constraint(f"structured_outputs.{kind}", canonical(outputs))


def _of_tools(body: Json) -> Iterator[Constraint]:
    """The schemas of which vLLM makes a grammar: all of them where a call is certain or one tool is strict, only the
    chosen one where one is chosen.
    """
    tools = [_Tool.of(tool, index) for index, tool in enumerate(body.get("tools") or ())]
    choice = body.get("tool_choice")
    if choice == "none":
        return
    word = choice.get("type") if isinstance(choice, Mapping) else choice
    chosen = _members(choice).get("name") if isinstance(choice, Mapping) else None
    is_strict = any(tool.is_strict for tool in tools)
    for tool in tools:
        if tool.schema is None or (chosen is not None and tool.name != chosen):
            continue
        if chosen is not None or word in ("required", "any") or (is_strict and tool.is_strict is not False):
            yield _schema(tool.path, tool.schema)


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    path: str
    schema: Json | None
    is_strict: bool | None

    @classmethod
    def of(cls, tool: Json, index: int) -> "_Tool":
        members = _members(tool)
        name = "input_schema" if "input_schema" in members else "parameters"
        path = f"tools[{index}].function.{name}" if "function" in tool else f"tools[{index}].{name}"
        return cls(members.get("name", ""), path, members.get(name), members.get("strict"))


def _members(holder: Json) -> Json:
    """Chat keeps a function's members one level deeper than the others do."""
    function = holder.get("function")
    return function if isinstance(function, Mapping) else holder


def _schema(path: str, schema: object) -> Constraint:
    return Constraint(path, {"json": schema})
