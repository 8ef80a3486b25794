"""What the bundled model is asked in more than one test: things it was trained to do."""

from typing import Any

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
COUNT_TO_TEN = [{"role": "user", "content": "Count from 1 to 10."}]
#: Goes on until somebody ends it, when it is sent with ``ignore_eos``: far longer than a test.
COUNT_FOREVER = [{"role": "user", "content": "Count from 1 to 200."}]
FOREVER: dict[str, Any] = {"ignore_eos": True, "max_tokens": 3500}

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALCULATOR_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
TOOLS = [WEATHER_TOOL, CALCULATOR_TOOL]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
EXTRACT = [{"role": "user", "content": "Extract name, city and amount as JSON: Anna Berg from Oslo paid 120 euros."}]
