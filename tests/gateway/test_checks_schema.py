"""Schemas from clients: row F29 of the fault list, and the schemas that people really send."""

import contextlib
import json
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from serving.config.limits import Limits
from serving.errors import BadRequest
from serving.gateway.checks_schema import Schema
from serving.gateway.endpoint import Endpoint
from serving.gateway.json_body import parse
from serving.gateway.validate import RequestContext, ValidRequest, validate

LIMITS = Limits(max_json_depth=200, allow_regex=True)
CONTEXT = RequestContext(max_model_len=4096, cache_salt="salt-of-the-tenant", request_id="req-ours")
CHAT: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, object] = {"model": "m", "prompt": "Hi"}
RESPONSE: dict[str, object] = {"model": "m", "input": "Hi"}
MESSAGE: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16}

Fields = dict[str, object]


def send(endpoint: Endpoint, body: Fields, context: RequestContext = CONTEXT, limits: Limits = LIMITS) -> ValidRequest:
    """Through bytes, as a client's request comes."""
    return validate(endpoint, parse(json.dumps(body).encode(), limits), limits, context)


def refusal(endpoint: Endpoint, body: Fields, context: RequestContext = CONTEXT) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        send(endpoint, body, context)
    assert caught.value.answer.status == 400
    return caught.value


def chat_with(**fields: object) -> Fields:
    return {**CHAT, **fields}


def nested(depth: int) -> Fields:
    schema: Fields = {"type": "string"}
    for _ in range(depth - 1):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def response_format(schema: object) -> Fields:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


BOMBS = [
    pytest.param(nested(33), id="depth 33"),
    pytest.param(nested(50), id="depth 50"),
    pytest.param({"type": "object", "properties": {f"p{i}": {} for i in range(5001)}}, id="5,001 properties"),
    pytest.param({"type": "object", "properties": {f"p{i}": {} for i in range(300)}}, id="300 optional properties"),
    pytest.param({"type": "object", "properties": {"a": {"$ref": "#"}}}, id="recursive, root"),
    pytest.param({"$ref": "#"}, id="only itself"),
    pytest.param({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, id="mutual"),
    pytest.param(
        {
            "$defs": {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(40)}
            | {"d40": {"type": "string"}},
            "$ref": "#/$defs/d0",
        },
        id="depth through references",
    ),
    pytest.param({"$ref": "https://example.com/schema.json"}, id="remote"),
    pytest.param({"$ref": "file:///etc/passwd"}, id="file"),
    pytest.param({"$ref": "other.json#/a"}, id="relative file"),
    pytest.param({"$ref": 7}, id="reference of another type"),
    pytest.param({"$ref": "#/$defs/missing"}, id="dangling"),
    pytest.param({"$dynamicRef": "#a"}, id="dynamic reference"),
    pytest.param({"enum": list(range(1001))}, id="1,001 enum values"),
    pytest.param({"enum": []}, id="empty enum"),
    pytest.param({"type": "array", "items": {}, "minItems": 10**9}, id="minItems"),
    pytest.param({"type": "array", "items": {}, "maxItems": 10**9}, id="maxItems"),
    pytest.param({"type": "string", "minLength": 10**6}, id="minLength"),
    pytest.param({"type": "string", "maxLength": -1}, id="negative maxLength"),
    pytest.param({"type": "string", "maxLength": 1e300}, id="huge maxLength"),
    pytest.param({"type": "object", "minProperties": 10**6}, id="minProperties"),
    pytest.param(
        {"type": "object", "properties": {f"p{i}": {"maxLength": 900} for i in range(5)}}, id="lengths that add up"
    ),
    pytest.param({"type": "string", "pattern": "a" * 4097}, id="long pattern"),
    pytest.param({"type": "string", "pattern": 7}, id="pattern of another type"),
    pytest.param({"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}, id="pattern bomb"),
    pytest.param({"type": "object", "patternProperties": {"(a{99}){99}": {}}}, id="pattern bomb as a key"),
    pytest.param({"type": "string", "description": "x" * 70_000}, id="over 64 KB"),
    pytest.param({"type": "strange"}, id="unknown type"),
    pytest.param({"type": []}, id="no type"),
    pytest.param({"type": "object", "properties": [1]}, id="properties of another type"),
    pytest.param({"type": "object", "required": "a"}, id="required of another type"),
    pytest.param({"anyOf": []}, id="empty anyOf"),
    pytest.param({"items": 3}, id="subschema of another type"),
    pytest.param([], id="an array"),
    pytest.param("{}", id="a string"),
    pytest.param(True, id="a boolean"),
]


@pytest.mark.parametrize("schema", BOMBS)
def test_f29_a_schema_bomb_is_400_in_every_place_that_takes_a_schema(schema: object) -> None:
    tool = {"name": "f", "parameters": schema}
    for endpoint, body, where in (
        (Endpoint.CHAT, chat_with(response_format=response_format(schema)), "response_format.json_schema.schema"),
        (Endpoint.COMPLETIONS, {**COMPLETION, "response_format": response_format(schema)}, "response_format."),
        (Endpoint.CHAT, chat_with(tools=[{"type": "function", "function": {**tool, "strict": True}}]), "tools[0]."),
        (
            Endpoint.CHAT,
            chat_with(tools=[{"type": "function", "function": tool}], tool_choice="required"),
            "tools[0].function.parameters",
        ),
        (
            Endpoint.RESPONSES,
            {**RESPONSE, "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}},
            "text.format.schema",
        ),
        (
            Endpoint.RESPONSES,
            {**RESPONSE, "tools": [{"type": "function", "strict": True, **tool}]},
            "tools[0].parameters",
        ),
        (
            Endpoint.MESSAGES,
            {**MESSAGE, "tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "any"}},
            "tools[0].input_schema",
        ),
        (
            Endpoint.MESSAGES,
            {**MESSAGE, "output_config": {"format": {"type": "json_schema", "schema": schema}}},
            "output_config.format.schema",
        ),
    ):
        error = refusal(endpoint, cast(Fields, body))
        assert (error.param or "").startswith(where)
    if not isinstance(schema, str):
        assert (refusal(Endpoint.CHAT, chat_with(structured_outputs={"json": schema})).param or "").startswith(
            "structured_outputs.json"
        )


def test_f29_a_schema_as_a_string_is_checked_like_any_other() -> None:
    for text in ("{", '{"$ref": "#"}', "[1]", '"x"'):
        assert refusal(
            Endpoint.CHAT, chat_with(structured_outputs={"json": text})
        ).param == "structured_outputs.json" or ("$ref" in text)


class City(BaseModel):
    """As pydantic writes schemas: definitions, references, constraints, defaults, descriptions."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Z]\\w*$")
    population: int | None = Field(default=None, ge=0)
    tags: list[str] = Field(default_factory=list, max_length=20)


class Trip(BaseModel):
    cities: list[City] = Field(min_length=1, max_length=50)
    mode: str = Field(json_schema_extra={"enum": ["car", "train"]})
    home: City


class Node(BaseModel):
    """A tree: fine for the prompt, impossible for a grammar."""

    value: str
    children: list["Node"] = Field(default_factory=list)


GOOD = [
    pytest.param({}, id="anything"),
    pytest.param({"type": "object"}, id="any object"),
    pytest.param({"type": ["string", "null"]}, id="nullable"),
    pytest.param({"type": "array", "items": True}, id="boolean subschema"),
    pytest.param({"const": {"$ref": "not one"}}, id="a constant that looks like a schema"),
    pytest.param(Trip.model_json_schema(), id="pydantic"),
    pytest.param(nested(32), id="depth 32"),
    pytest.param({"enum": list(range(1000))}, id="1,000 enum values"),
    pytest.param({"type": "object", "properties": {f"p{i}": {} for i in range(256)}}, id="256 optional properties"),
    pytest.param(
        {
            "type": "object",
            "properties": {f"p{i}": {"type": "string"} for i in range(1000)},
            "required": [f"p{i}" for i in range(1000)],
        },
        id="1,000 required properties",
    ),
    pytest.param(
        {"$defs": {"a/b~c": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a~1b~0c"}}}, id="escaped pointer"
    ),
    pytest.param({"anyOf": [{"type": "string"}, {"$ref": "#/anyOf/0"}]}, id="pointer into an array"),
    pytest.param(
        {
            "$defs": {"leaf": {"type": "string"}}
            | {
                f"d{i}": {"anyOf": [{"$ref": f"#/$defs/{t}"}] * 9}
                for i, t in enumerate(["leaf", "d0", "d1", "d2", "d3"])
            },
            "$ref": "#/$defs/d4",
        },
        id="shared many times",
    ),
]


@pytest.mark.parametrize("schema", GOOD)
def test_schemas_that_people_send_pass_unchanged(schema: Fields) -> None:
    assert send(Endpoint.CHAT, chat_with(response_format=response_format(schema))).body["response_format"] == (
        response_format(schema)
    )
    assert send(Endpoint.CHAT, chat_with(structured_outputs={"json": json.dumps(schema)})).body["structured_outputs"]


def test_a_recursive_tool_passes_while_the_engine_only_reads_it() -> None:
    """Tools of the Model Context Protocol are often recursive; with tool_choice auto no grammar is made of them."""
    tool = {"type": "function", "function": {"name": "f", "parameters": Node.model_json_schema()}}
    assert send(Endpoint.CHAT, chat_with(tools=[tool], tool_choice="auto")).body["tools"] == [tool]
    named = {"type": "function", "function": {"name": "f"}}
    assert refusal(Endpoint.CHAT, chat_with(tools=[tool], tool_choice=named)).param == (
        "tools[0].function.parameters.$defs.Node.properties.children.items.$ref"
    )


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(nested(33), id="depth"),
        pytest.param({"properties": {f"p{i}": {} for i in range(5001)}}, id="properties"),
        pytest.param({"enum": list(range(1001))}, id="enum"),
        pytest.param({"description": "x" * 70_000}, id="bytes"),
        pytest.param({"$ref": "https://example.com/a"}, id="remote"),
    ],
)
def test_a_tool_that_is_only_read_is_still_bounded(schema: Fields) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert (refusal(Endpoint.CHAT, chat_with(tools=[tool])).param or "").startswith("tools[0].function.parameters")


def test_schemas_compiled_together_are_bounded_together() -> None:
    parameters = {"type": "object", "description": "x" * 10_000}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(10)]
    assert len(send(Endpoint.CHAT, chat_with(tools=tools)).body["tools"]) == 10  # type: ignore[arg-type]
    assert refusal(Endpoint.CHAT, chat_with(tools=tools, tool_choice="required")).param == "tools"
    named = {"type": "function", "function": {"name": "f7"}}
    send(Endpoint.CHAT, chat_with(tools=tools, tool_choice=named))


PATTERNS = [
    ({"type": "string", "pattern": "^a$"}, "pattern"),
    ({"type": "object", "properties": {"x": {"anyOf": [{"pattern": "a"}]}}}, "properties.x.anyOf[0].pattern"),
    ({"type": "object", "patternProperties": {"^a$": {}}}, "patternProperties"),
]


@pytest.mark.parametrize(("schema", "where"), PATTERNS)
def test_f30_a_pattern_in_a_schema_is_a_regular_expression_and_off_by_default(schema: Fields, where: str) -> None:
    body = chat_with(response_format=response_format(schema))
    send(Endpoint.CHAT, body)
    with pytest.raises(BadRequest) as caught:
        send(Endpoint.CHAT, body, limits=Limits())
    assert (caught.value.code, caught.value.param) == (
        "unsupported_parameter", f"response_format.json_schema.schema.{where}",
    )  # fmt: skip


def test_a_pattern_in_a_tool_that_is_only_read_passes() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"pattern": "a"}}}}}
    assert send(Endpoint.CHAT, chat_with(tools=[tool]), limits=Limits()).body["tools"] == [tool]


def test_beside_a_strict_tool_all_are_compiled_that_do_not_say_otherwise() -> None:
    """vLLM makes one grammar of them."""
    strict = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}
    other = {"type": "function", "function": {"name": "g", "parameters": Node.model_json_schema()}}
    assert (refusal(Endpoint.CHAT, chat_with(tools=[strict, other])).param or "").startswith("tools[1].")
    loose = {"type": "function", "function": {**other["function"], "strict": False}}  # type: ignore[dict-item]
    send(Endpoint.CHAT, chat_with(tools=[strict, loose]))


def test_optional_properties_and_lengths_are_bounded_as_the_config_says() -> None:
    optional = {"type": "object", "properties": {f"p{i}": {"maxLength": 10} for i in range(5)}}
    body = chat_with(response_format=response_format(optional))
    send(Endpoint.CHAT, body, limits=Limits(max_schema_optional=5, max_schema_repeats=50))
    for limits, word in ((Limits(max_schema_optional=4), "optional"), (Limits(max_schema_repeats=49), "more than 49")):
        with pytest.raises(BadRequest, match=word):
            send(Endpoint.CHAT, body, limits=limits)


KEYWORDS = st.sampled_from(
    "type properties items anyOf enum required $ref $defs minItems maxLength pattern const not".split()
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.sampled_from(["object", "#", "#/$defs/a", "(a{9}){9}", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.just("a"), inner, max_size=4),
    max_leaves=25,
)


@given(VALUES, st.booleans())
def test_any_json_as_a_schema_passes_or_is_a_bad_request(value: object, is_compiled: bool) -> None:
    with contextlib.suppress(BadRequest):
        assert Schema(is_compiled)(value, "schema", LIMITS) is value
