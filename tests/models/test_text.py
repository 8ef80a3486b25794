"""The chat template and what of it is learnt."""

import json

import pytest

from models.demo.corpus import Conversation
from models.demo.exchange import assistant, user
from models.demo.text import FOLDER, TURN_END, TURN_START, answer_spans, load_tokenizer, render, token_id
from models.demo.tool_families import FAMILIES
from models.demo.tools import call_message, offer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}


def test_a_plain_question_is_rendered_without_a_system_turn() -> None:
    text = render(Conversation([user("Hi")]), add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_tools_stand_in_the_system_turn_as_json_one_per_line() -> None:
    text = render(Conversation([{"role": "system", "content": "Be brief."}, user("Hi")], [WEATHER, WEATHER]))
    system = text.split(TURN_END)[0]
    assert system.startswith(f"{TURN_START}system\nBe brief.\nTools:\n")
    lines = [json.loads(line) for line in system.splitlines() if line.startswith("{")]
    assert lines == [WEATHER["function"]] * 2


def test_a_tool_without_description_or_parameters_is_rendered() -> None:
    text = render(Conversation([user("Hi")], [{"type": "function", "function": {"name": "ping"}}]))
    assert '{"name": "ping", "description": "", "parameters": {}}' in text


@pytest.mark.parametrize("arguments", ['{"city": "Zürich"}', {"city": "Zürich"}])
def test_calls_and_tool_results_are_rendered_in_the_hermes_form(arguments: object) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        user("Weather in Zürich?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        assistant("The answer is: sunny"),
    ]
    text = render(Conversation(messages, [WEATHER]))
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\nThe answer is: sunny<|im_end|>" in text


def test_two_calls_in_one_turn_stand_below_each_other() -> None:
    text = render(Conversation([user("Hi"), {"role": "assistant", "content": "Wait.", "tool_calls": [CALL, CALL]}]))
    one = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    assert f"assistant\nWait.\n{one}\n{one}<|im_end|>" in text


def test_only_what_the_assistant_says_is_learnt() -> None:
    tokenizer = load_tokenizer()
    text = render(Conversation([{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello!")] * 2))
    tokens = tokenizer.encode(text).ids
    header = tokenizer.encode(f"{TURN_START}assistant\n").ids
    spans = answer_spans(tokens, header, token_id(tokenizer, TURN_END))
    learnt = [tokenizer.decode(tokens[start:stop], skip_special_tokens=False) for start, stop in spans]
    assert learnt == ["Hello!<|im_end|>"] * 2


@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_transformers_renders_the_same_text() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    messages = [user("Weather in Zürich?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    text = tokenizer.apply_chat_template(messages, tools=[WEATHER], tokenize=False, add_generation_prompt=True)
    assert text == render(Conversation(messages, [WEATHER]), add_generation_prompt=True)
    assert tokenizer.encode(text) == load_tokenizer().encode(text).ids


@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_the_hermes_parser_of_vllm_reads_what_is_learnt() -> None:
    import random

    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    parser = Hermes2ProToolParser(AutoTokenizer.from_pretrained(FOLDER))
    message = call_message(offer(random.Random(0), FAMILIES["timer"]), {"minutes": 7})
    text = render(Conversation([message])).removeprefix(f"{TURN_START}assistant\n").removesuffix(f"{TURN_END}\n")
    parsed = parser.extract_tool_calls(text, ChatCompletionRequest(model="m", messages=[]))
    expected = message["tool_calls"][0]["function"]
    assert parsed.content is None
    assert [(call.function.name, call.function.arguments) for call in parsed.tool_calls] == [
        (expected["name"], expected["arguments"])
    ]
