"""Tool calls and structured output through the official client: the model writes hermes calls, clients see OpenAI's."""

import json
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel

from tests.e2e.prompts import CAPITAL, EXTRACT, TOOLS, WEATHER
from tests.e2e.server import MODEL


def ask(client: openai.OpenAI, **fields: Any) -> ChatCompletionMessage:
    fields = {"model": MODEL, "messages": WEATHER, "tools": TOOLS, "temperature": 0, **fields}
    return client.chat.completions.create(**fields).choices[0].message


def test_a_call_that_the_model_writes_reaches_the_client_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=WEATHER, tools=TOOLS, temperature=0)
    (call,) = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert call.id


def test_a_streamed_call_adds_up_to_the_whole_one(client: openai.OpenAI) -> None:
    """Id and name come once, in its first delta; the arguments are pieces of one JSON text."""
    with client.chat.completions.create(
        model=MODEL, messages=WEATHER, tools=TOOLS, temperature=0, stream=True
    ) as stream:
        choices = [choice for chunk in stream for choice in chunk.choices]
    deltas = [delta for choice in choices for delta in choice.delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    assert [bool(delta.id) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    names = [delta.function.name for delta in deltas if delta.function and delta.function.name]
    assert names == ["get_weather"]
    arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert json.loads(arguments) == {"city": "Paris"}
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]
    assert "tool_call" not in "".join(choice.delta.content or "" for choice in choices)


def test_a_tools_result_goes_back_and_is_reported(client: openai.OpenAI) -> None:
    message = ask(client)
    (call,) = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'}
    conversation = [*WEATHER, message.model_dump(exclude_none=True), result]
    answer = ask(client, messages=conversation)
    assert not answer.tool_calls
    assert "21" in (answer.content or "")


def test_tool_choice_none_forbids_calls(client: openai.OpenAI) -> None:
    assert not ask(client, tool_choice="none").tool_calls


def test_tool_choice_required_makes_a_call_certain(client: openai.OpenAI) -> None:
    """Even where no tool is of use."""
    calls = ask(client, messages=CAPITAL, tool_choice="required", max_tokens=200).tool_calls or []
    assert calls
    for call in calls:
        assert call.type == "function"
        assert call.function.name in ("get_weather", "calculator")
        assert isinstance(json.loads(call.function.arguments), dict)


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "calculator"}}
    (call,) = ask(client, tool_choice=choice, max_tokens=200).tool_calls or []
    assert call.type == "function"
    assert call.function.name == "calculator"
    assert json.loads(call.function.arguments).keys() == {"expression"}


def test_json_object_is_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=EXTRACT, temperature=0, response_format={"type": "json_object"}, max_tokens=200
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


class Payment(BaseModel):
    """A schema with an order of members and a set of values that the model has no habit of."""

    currency: Literal["euros", "dollars"]
    amount: int


def test_a_strict_schema_is_kept_to_and_parsed_by_the_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=EXTRACT, temperature=0, response_format=Payment, max_tokens=100
    )
    payment = answer.choices[0].message.parsed
    assert payment is not None
    assert payment.currency in ("euros", "dollars")


def test_a_schema_that_cannot_be_compiled_is_the_clients_fault(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=MODEL, messages=EXTRACT, max_tokens=5,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )  # fmt: skip
