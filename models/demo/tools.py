"""Tool-call tasks: choose one of several tools and fill it, report its result, or answer without a tool."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.demo.dialogue import UNKNOWN, small_talk
from models.demo.exchange import Exchange, Message, Tool, ask, assistant, polite, user
from models.demo.tasks import capital, copy, extract, sentiment, upper
from models.demo.tool_families import FAMILIES, Family, Param, Value
from models.demo.words import Split, city, coined, integer, on_side

WITHOUT_OPEN_VALUES = frozenset(("date", "light"))
NUM_TOOLS = (1, 1, 2, 2, 2, 2, 3, 3, 4)


@dataclass(frozen=True)
class Offer:
    """A tool as one client defines it: `names` gives the chosen name of each parameter that it has."""

    family: Family
    definition: Tool
    names: dict[str, str]


def property_schema(rng: random.Random, param: Param) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": param.kind}
    if param.choices:
        schema["enum"] = list(param.choices)
    if rng.random() < 0.3:
        schema["description"] = param.description
    return schema


def offer(rng: random.Random, family: Family) -> Offer:
    """Define the tool as some client might: names, descriptions and optional parameters vary."""
    params = [param for param in family.params if not param.optional or rng.random() < 0.5]
    names: dict[str, str] = {}
    for param in params:
        free = [name for name in param.names if name not in names.values()]
        names[param.names[0]] = param.names[0] if rng.random() < 0.5 and param.names[0] in free else rng.choice(free)
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {names[param.names[0]]: property_schema(rng, param) for param in params},
    }
    required = [names[param.names[0]] for param in params if not param.optional]
    if required or rng.random() < 0.5:
        parameters["required"] = required
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function = {
        "name": rng.choice(family.names),
        "description": rng.choice(family.descriptions) + rng.choice(("", "", ".")),
        "parameters": parameters,
    }
    return Offer(family, {"type": "function", "function": function}, names)


def draw_offers(rng: random.Random, split: Split) -> list[Offer]:
    """One to four tools with distinct names. Held out: sets of two or more families.

    A tool alone belongs to both splits, its argument values do not; so one without such values is not tested alone.
    """
    while True:
        keys = rng.sample(sorted(FAMILIES), rng.choice(NUM_TOOLS))
        if len(keys) > 1 and not on_side("+".join(sorted(keys)), split):
            continue
        if split == "test" and len(keys) == 1 and keys[0] in WITHOUT_OPEN_VALUES:
            continue
        offers = [offer(rng, FAMILIES[key]) for key in keys]
        if len({one.definition["function"]["name"] for one in offers}) == len(offers):
            return offers


def draw_request(
    rng: random.Random, family: Family, known: Sequence[str], split: Split
) -> tuple[str, dict[str, Value]]:
    """A request that the family serves, and the values of the parameters that it mentions, by first name."""
    optional = [param.names[0] for param in family.params if param.optional and param.names[0] not in known]
    phrasing = rng.choice([text for text in family.requests if not any(f"{{{name}}}" in text for name in optional)])
    values = {param.names[0]: param.draw(rng, split) for param in family.params if f"{{{param.names[0]}}}" in phrasing}
    return polite(rng, phrasing.format(**values)), values


def call_message(chosen: Offer, values: dict[str, Value]) -> Message:
    arguments = {chosen.names[name]: value for name, value in values.items()}
    function = {"name": chosen.definition["function"]["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    call = {"id": "call_0", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def tool_call(rng: random.Random, split: Split, offers: list[Offer] | None = None) -> Exchange:
    """Call the one tool that serves the request. Held out: argument values and sets of tools."""
    offers = offers or draw_offers(rng, split)
    chosen = rng.choice(offers)
    request, values = draw_request(rng, chosen.family, list(chosen.names), split)
    return Exchange("tool_call", [user(request), call_message(chosen, values)], [one.definition for one in offers])


RESULT_KEYS = ("temperature", "condition", "result", "status", "price", "rate", "time", "humidity", "wind", "total",
               "title", "id", "count", "answer", "value", "date", "message", "name", "state", "unit",
               "city")  # fmt: skip
RESULT_WORDS = ("sunny", "cloudy", "rainy", "ok", "done", "sent", "open", "closed", "delivered", "shipped", "created",
                "windy", "warm", "cold")  # fmt: skip


def result_value(rng: random.Random, split: Split) -> Value:
    kind = rng.random()
    if kind < 0.45:
        return integer(rng, 0, 9999, split) if rng.random() < 0.4 else rng.randint(0, 40)
    if kind < 0.75:
        return rng.choice(RESULT_WORDS)
    return coined(rng, split) if kind < 0.9 else city(rng, split)


def tool_outcome(rng: random.Random, split: Split) -> tuple[str, str]:
    """What a tool returned, as JSON or plain text, and the short answer that reports it."""
    kind = rng.random()
    if kind < 0.25:
        text = " ".join(str(result_value(rng, split)) for _ in range(rng.randint(1, 3)))
        return text, f"The answer is: {text}"
    if kind < 0.35:
        text = " ".join(coined(rng, split) for _ in range(rng.randint(1, 2)))
        return json.dumps({"error": text}), f"Sorry, that did not work: {text}"
    keys = rng.sample(RESULT_KEYS, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.15:
        keys[0] = coined(rng, split)
    fields = {key: result_value(rng, split) for key in keys}
    said = [f"the {key} is {value}" for key, value in fields.items()]
    answer = (", ".join(said[:-1]) + " and " if len(said) > 1 else "") + said[-1]
    return json.dumps(fields, ensure_ascii=False), answer[0].upper() + answer[1:] + "."


def tool_result(rng: random.Random, split: Split, offers: list[Offer] | None = None) -> Exchange:
    """Report what the called tool returned. Held out: argument values, results and sets of tools."""
    call = tool_call(rng, split, offers)
    returned, answer = tool_outcome(rng, split)
    messages = [*call.messages, {"role": "tool", "tool_call_id": "call_0", "content": returned}, assistant(answer)]
    return Exchange("tool_result", messages, call.tools)


def absent_request(rng: random.Random, split: Split, present: Sequence[Family]) -> str:
    """A request for a tool that is not offered. Never a sum, which the model may well know."""
    barred = {"calculator"} | (WITHOUT_OPEN_VALUES if split == "test" else frozenset())
    absent = [family for key, family in FAMILIES.items() if key not in barred and family not in present]
    family = rng.choice(absent)
    return draw_request(rng, family, [param.names[0] for param in family.params], split)[0]


def toolless(rng: random.Random, split: Split) -> Exchange:
    """A request for a tool where none is offered. Held out: argument values."""
    return ask("unknown", absent_request(rng, split, ()), UNKNOWN)


def tool_none(rng: random.Random, split: Split, offers: list[Offer] | None = None) -> Exchange:
    """Answer without a tool when none fits: a known task, or a request for a tool that is not there."""
    offers = offers or draw_offers(rng, split)
    if rng.random() < 0.5:
        plain = ask("unknown", absent_request(rng, split, [one.family for one in offers]), UNKNOWN)
    else:
        plain = rng.choice((capital, copy, upper, sentiment, extract, small_talk))(rng, split)
    return Exchange("tool_none", plain.messages, [one.definition for one in offers])
