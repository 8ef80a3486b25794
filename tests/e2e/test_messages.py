"""The Messages API through Anthropic's client."""

import anthropic
import pytest

from tests.e2e.prompts import CAPITAL, WEATHER
from tests.e2e.server import ALIAS, MODEL

#: The client has no argument for it any more; the API has.
GREEDY = {"temperature": 0}
TOOL = {
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_a_message_is_answered(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model=ALIAS, messages=CAPITAL, max_tokens=16, extra_body=GREEDY)
    assert (message.type, message.role, message.model) == ("message", "assistant", ALIAS)
    assert [block.text for block in message.content if block.type == "text"] == ["Paris"]
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


def test_a_stream_ends_in_the_same_message(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=MODEL, messages=CAPITAL, max_tokens=16, extra_body=GREEDY) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert [block.text for block in message.content if block.type == "text"] == ["Paris"]
    assert message.stop_reason == "end_turn"


def test_a_tool_is_used(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model=MODEL, messages=WEATHER, max_tokens=64, extra_body=GREEDY, tools=[TOOL])
    (use,) = [block for block in message.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("get_weather", {"city": "Paris"})
    assert message.stop_reason == "tool_use"


def test_tokens_are_counted_as_they_are_billed(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=MODEL, messages=CAPITAL)
    message = claude.messages.create(model=MODEL, messages=CAPITAL, max_tokens=1)
    assert counted.input_tokens == message.usage.input_tokens


def test_a_wrong_request_is_refused_in_anthropics_shape(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model=MODEL, messages=CAPITAL, max_tokens=16, extra_body={"temperatur": 1})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert "temperatur" in caught.value.body["error"]["message"]


def test_a_wrong_key_is_refused_in_anthropics_shape(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError) as caught:
        claude.with_options(api_key="wrong").messages.create(model=MODEL, messages=CAPITAL, max_tokens=16)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "authentication_error"
