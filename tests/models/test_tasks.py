"""The task generators: right answers, the same from the same seed, and held-out questions that training never shows."""

import ast
import itertools
import json
import operator
import random

import pytest

from models.demo.corpus import PLAIN_TASKS, TOOL_TASKS, Conversation, conversations, held_out
from models.demo.exchange import Exchange
from models.demo.tasks import CAPITALS, DECIMAL_UNITS, TIME_UNITS, Split
from models.demo.text import render

GENERATORS = {**PLAIN_TASKS, **TOOL_TASKS}
NUM_DRAWS = 1500


def draws(name: str, split: Split, num: int = 200, seed: int = 0) -> list[Exchange]:
    rng = random.Random(f"{name}-{seed}")
    return [GENERATORS[name](rng, split) for _ in range(num)]


def prompt(exchange: Exchange) -> str:
    return render(Conversation(exchange.messages[:-1], exchange.tools))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_repeats_itself_from_the_same_seed(name: str) -> None:
    assert draws(name, "test") == draws(name, "test")


def test_training_conversations_repeat_from_the_same_seed_and_differ_for_another() -> None:
    first, again, other = (list(itertools.islice(conversations(stream, []), 50)) for stream in ("0", "0", "1"))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", GENERATORS)
def test_no_held_out_question_is_ever_a_training_question(name: str) -> None:
    seen = {prompt(exchange) for exchange in draws(name, "train", NUM_DRAWS)}
    asked = {prompt(exchange) for exchange in draws(name, "test", NUM_DRAWS)}
    assert not seen & asked


def test_no_held_out_question_occurs_in_a_long_stretch_of_training_text() -> None:
    text = "\n".join(render(one) for one in itertools.islice(conversations("0", []), 3000))
    for exchange, _ in held_out(0, 30):
        if not exchange.tools and exchange.task != "remember":
            assert render(Conversation(exchange.messages[:-1])) not in text


@pytest.mark.parametrize("name", GENERATORS)
def test_an_exchange_begins_with_the_user_and_ends_with_an_answer(name: str) -> None:
    for exchange in draws(name, "train"):
        assert exchange.messages[0]["role"] == "user"
        assert exchange.answer["role"] == "assistant"
        assert exchange.answer["content"] or exchange.answer["tool_calls"]


@pytest.mark.parametrize(
    ("name", "sign", "apply"),
    [("add", "+", operator.add), ("subtract", "-", operator.sub), ("multiply", "*", operator.mul)],
)
def test_sums_are_right(name: str, sign: str, apply: "operator.attrgetter[int]") -> None:
    for exchange in draws(name, "train"):
        question = exchange.messages[0]["content"]
        numbers = [int(number) for number in "".join(c if c.isdigit() else " " for c in question).split()]
        if "from" in question:
            numbers.reverse()
        assert exchange.answer["content"] == str(apply(*numbers)), (question, sign)


def test_conversions_keep_the_ratio_of_the_units() -> None:
    factors = {**DECIMAL_UNITS, **TIME_UNITS}
    for exchange in draws("convert", "train"):
        amount, unit = exchange.answer["content"].split()
        asked = int("".join(c if c.isdigit() else " " for c in exchange.messages[0]["content"]).split()[0])
        fits = [
            asked * factor == int(amount) if unit == small else int(amount) * factor == asked
            for (large, small), factor in factors.items()
            if unit in (large, small)
        ]
        assert any(fits), exchange


def test_there_are_sixty_capitals() -> None:
    assert len(CAPITALS) >= 60
    assert len(set(CAPITALS.values())) == len(CAPITALS)


def test_reversing_twice_gives_the_text_that_was_asked() -> None:
    for exchange in draws("reverse", "test"):
        assert exchange.answer["content"][::-1] in exchange.messages[0]["content"]


def test_extracted_values_stand_in_the_sentence() -> None:
    for exchange in draws("extract", "test"):
        fields = json.loads(exchange.answer["content"])
        assert list(fields) == ["name", "city", "amount"]
        assert all(str(value) in exchange.messages[0]["content"] for value in fields.values())


def test_counting_goes_from_the_first_number_to_the_last() -> None:
    for exchange in draws("count", "train"):
        numbers = ast.literal_eval(f"[{exchange.answer['content']}]")
        assert len({b - a for a, b in itertools.pairwise(numbers)}) == 1
        assert f"from {numbers[0]} to {numbers[-1]}" in exchange.messages[0]["content"]


def test_a_call_names_an_offered_tool_and_fills_only_its_parameters() -> None:
    for exchange in draws("tool_call", "test"):
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in exchange.tools}
        function = exchange.answer["tool_calls"][0]["function"]
        arguments = json.loads(function["arguments"])
        schema = offered[function["name"]]
        assert set(schema.get("required", ())) <= set(arguments) <= set(schema["properties"])
        assert all(str(value) in exchange.messages[0]["content"] for value in arguments.values())


def test_a_name_is_asked_for_in_the_third_turn() -> None:
    for exchange in draws("remember", "test"):
        assert [message["role"] for message in exchange.messages] == ["user", "assistant"] * 3
        name = exchange.answer["content"].removeprefix("Your name is ").removesuffix(".")
        assert name in exchange.messages[0]["content"]
