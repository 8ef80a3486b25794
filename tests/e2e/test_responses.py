"""The Responses API through the official client."""

import json

import openai
import pytest

from tests.e2e.prompts import WEATHER_TOOL
from tests.e2e.server import ALIAS, MODEL

QUESTION = "What is the capital of France?"
FUNCTION = {"type": "function", **WEATHER_TOOL["function"]}


def test_a_response_is_made(client: openai.OpenAI) -> None:
    response = client.responses.create(model=ALIAS, input=QUESTION, temperature=0)
    assert response.output_text == "Paris"
    assert response.status == "completed"
    assert response.model == ALIAS
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


async def test_the_async_client_gets_the_same_answer(async_client: openai.AsyncOpenAI) -> None:
    assert (await async_client.responses.create(model=MODEL, input=QUESTION, temperature=0)).output_text == "Paris"


def test_a_stream_is_typed_events_from_created_to_completed(client: openai.OpenAI) -> None:
    with client.responses.create(model=ALIAS, input=QUESTION, temperature=0, stream=True) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.completed") == 1
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Paris"
    assert events[0].response.id == events[-1].response.id
    assert {events[0].response.model, events[-1].response.model} == {ALIAS}
    assert events[-1].response.output_text == "Paris"


def test_a_function_call_is_an_item_of_the_output(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="What is the weather in Paris?", temperature=0, tools=[FUNCTION]
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Paris"}


def test_the_output_cap_makes_a_response_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Count from 1 to 10.", max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_nothing_is_stored_so_nothing_can_be_continued(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=QUESTION, previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
