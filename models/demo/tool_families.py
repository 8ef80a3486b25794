"""The tools that the model learns to call: what each is named, takes and is asked, with several variants of each."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from models.demo.words import ERRANDS, FIRST_NAMES, SONGS, TOPICS, Split, city, coined, full_name, integer, pick

Value = str | int
Draw = Callable[[random.Random, Split], Value]


@dataclass(frozen=True)
class Param:
    """One parameter: its possible names, a description, how a value is drawn, and whether a call may leave it out."""

    names: tuple[str, ...]
    description: str
    draw: Draw
    kind: str = "string"
    choices: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """`requests` name the parameters that they fill by their first name in braces."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    params: tuple[Param, ...]
    requests: tuple[str, ...]


def one_of(*values: str) -> Draw:
    return lambda rng, split: rng.choice(values)


def whole(low: int, high: int) -> Draw:
    return lambda rng, split: integer(rng, low, high, split)


def topic(rng: random.Random, split: Split) -> str:
    kind = rng.random()
    if kind < 0.5:
        return pick(rng, TOPICS, split)
    if kind < 0.75:
        return coined(rng, split)
    return f"{coined(rng, split)} {rng.choice(('in', 'for', 'of'))} {coined(rng, split)}"


def errand(rng: random.Random, split: Split) -> str:
    if rng.random() < 0.6:
        return pick(rng, ERRANDS, split)
    return coined(rng, split) + rng.choice((" meeting", " class", " plans", ""))


def song(rng: random.Random, split: Split) -> str:
    return pick(rng, SONGS, split) if rng.random() < 0.5 else coined(rng, split).capitalize()


def expression(rng: random.Random, split: Split) -> str:
    return f"{integer(rng, 10, 9999, split)} {rng.choice('+-*/')} {integer(rng, 2, 999, split)}"


def address(rng: random.Random, split: Split) -> str:
    name = pick(rng, FIRST_NAMES, split).lower() if rng.random() < 0.5 else coined(rng, split)
    return f"{name}@{rng.choice(('example.com', 'example.org', coined(rng, split) + '.com'))}"


def clock_time(rng: random.Random, split: Split) -> str:
    return f"{rng.randint(6, 22):02d}:{rng.choice(('00', '15', '30', '45'))}"


def symbol(rng: random.Random, split: Split) -> str:
    return coined(rng, split)[:4].upper()


def order_code(rng: random.Random, split: Split) -> str:
    return f"{rng.choice('ABCDEFX')}{integer(rng, 100, 9999, split)}"


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today", "tomorrow")
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "SEK", "PLN", "INR")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Dutch", "Polish", "Japanese", "Greek", "Turkish", "Swedish")
ROOMS = ("kitchen", "bedroom", "bathroom", "office", "hallway", "garage", "garden", "living room")

FAMILIES: dict[str, Family] = {
    "weather": Family(
        ("get_weather", "get_current_weather", "weather", "get_forecast", "weather_lookup"),
        ("Get the current weather", "Get the weather for a city", "Get the current weather in a given location",
         "Look up the weather", "Get current weather for a location"),
        (Param(("city", "location", "place"), "The city", city),
         Param(("unit", "units"), "Temperature unit", one_of("celsius", "fahrenheit"),
               choices=("celsius", "fahrenheit"), optional=True)),
        ("What is the weather in {city}?", "What's the weather like in {city}?", "How is the weather in {city}?",
         "Weather in {city}?", "Is it raining in {city}?", "What is the weather like in {city} today?",
         "Tell me the weather in {city}.", "What is the temperature in {city}?", "How warm is it in {city}?",
         "What is the weather in {city} in {unit}?", "Give me the weather in {city} in {unit}.",
         "What's the temperature in {city} in {unit}?"),
    ),
    "currency": Family(
        ("convert_currency", "currency_converter", "exchange", "convert_money"),
        ("Convert an amount between currencies", "Convert money from one currency to another", "Currency conversion"),
        (Param(("amount", "value"), "The amount to convert", whole(1, 9999), kind="number"),
         Param(("from_currency", "from", "source"), "Currency to convert from", one_of(*CURRENCIES)),
         Param(("to_currency", "to", "target"), "Currency to convert to", one_of(*CURRENCIES))),
        ("Convert {amount} {from_currency} to {to_currency}.", "How much is {amount} {from_currency} in {to_currency}?",
         "What is {amount} {from_currency} in {to_currency}?", "Change {amount} {from_currency} into {to_currency}.",
         "Exchange {amount} {from_currency} for {to_currency}."),
    ),
    "calendar": Family(
        ("create_event", "add_event", "schedule_event", "add_to_calendar", "create_calendar_event"),
        ("Create a calendar event", "Add an event to the calendar", "Schedule an event"),
        (Param(("title", "name", "event"), "Title of the event", errand),
         Param(("date", "day"), "Day of the event", one_of(*DAYS)),
         Param(("time", "start_time"), "Start time", clock_time, optional=True)),
        ("Add {title} to my calendar on {date}.", "Schedule {title} for {date}.",
         "Put {title} in my calendar for {date}.",
         "Create an event {title} on {date}.", "Add {title} to my calendar on {date} at {time}.",
         "Schedule {title} for {date} at {time}.", "Create an event called {title} on {date} at {time}."),
    ),
    "calculator": Family(
        ("calculate", "calculator", "evaluate", "compute", "eval_expression"),
        ("Evaluate a math expression", "Calculate the result of an expression", "A simple calculator"),
        (Param(("expression", "expr", "input"), "The expression", expression),),
        ("What is {expression}?", "Calculate {expression}.", "Compute {expression}.", "How much is {expression}?",
         "Evaluate {expression}.", "Use the calculator for {expression}."),
    ),
    "search": Family(
        ("search", "search_web", "web_search", "search_docs", "find"),
        ("Search the web", "Search the web for a query", "Find pages about a topic", "Search for information"),
        (Param(("query", "q", "text"), "The search query", topic),),
        ("Search for {query}.", "Search the web for {query}.", "Look up {query}.", "Find pages about {query}.",
         "Find information on {query}.", "Search {query}", "Look for {query} on the web."),
    ),
    "email": Family(
        ("send_email", "email", "send_mail", "write_email"),
        ("Send an email", "Send an email to someone", "Write and send an email"),
        (Param(("to", "recipient", "address"), "Address of the recipient", address),
         Param(("subject", "title"), "Subject line", errand)),
        ("Send an email to {to} about {subject}.", "Email {to} about {subject}.",
         "Write an email to {to} about {subject}.",
         "Send an email to {to} with the subject {subject}.", "Mail {to} about {subject}."),
    ),
    "timer": Family(
        ("set_timer", "start_timer", "timer", "create_timer"),
        ("Set a timer", "Start a timer", "Set a timer for some minutes"),
        (Param(("minutes", "duration", "duration_minutes"), "Number of minutes", whole(1, 180), kind="integer"),),
        ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Timer for {minutes} minutes.",
         "Wake me in {minutes} minutes.", "Start a {minutes} minute timer."),
    ),
    "stock": Family(
        ("get_stock_price", "stock_price", "get_quote", "stock_quote"),
        ("Get the price of a stock", "Get the current stock price", "Look up a stock quote"),
        (Param(("symbol", "ticker"), "Stock symbol", symbol),),
        ("What is the stock price of {symbol}?", "Price of {symbol}?", "How is {symbol} stock doing?",
         "Quote for {symbol}.", "Get the stock price of {symbol}.", "What does {symbol} stock cost?"),
    ),
    "translate": Family(
        ("translate", "translate_text", "translator"),
        ("Translate a text", "Translate text into another language", "Translate words"),
        (Param(("text", "phrase", "input"), "The text to translate", topic),
         Param(("language", "target_language", "to"), "Target language", one_of(*LANGUAGES))),
        ("Translate {text} into {language}.", "Translate {text} to {language}.", "What is {text} in {language}?",
         "How do you say {text} in {language}?", 'Translate "{text}" into {language}.'),
    ),
    "time": Family(
        ("get_time", "get_current_time", "current_time", "world_clock"),
        ("Get the current time", "Get the current time in a city", "Tell the local time"),
        (Param(("city", "location", "place"), "The city", city),),
        ("What time is it in {city}?", "What is the time in {city}?", "Current time in {city}?",
         "Tell me the time in {city}."),
    ),
    "music": Family(
        ("play_music", "play_song", "play", "start_music"),
        ("Play a song", "Play music", "Start playing a song"),
        (Param(("song", "title", "track"), "Title of the song", song),
         Param(("artist", "singer"), "Name of the artist", full_name, optional=True)),
        ("Play {song}.", "Play the song {song}.", "I want to hear {song}.", "Play {song} by {artist}.",
         "Put on {song} by {artist}.", "Start the song {song}."),
    ),
    "light": Family(
        ("set_light", "control_light", "switch_light", "light"),
        ("Turn a light on or off", "Control the lights", "Switch a light"),
        (Param(("room", "place", "location"), "The room", one_of(*ROOMS)),
         Param(("state", "action"), "on or off", one_of("on", "off"), choices=("on", "off"))),
        ("Turn {state} the light in the {room}.", "Switch the {room} light {state}.", "Turn the {room} light {state}.",
         "Lights {state} in the {room}."),
    ),
    "flight": Family(
        ("book_flight", "find_flights", "search_flights", "flights"),
        ("Book a flight", "Find flights between two cities", "Search for flights"),
        (Param(("origin", "from_city", "from"), "City of departure", city),
         Param(("destination", "to_city", "to"), "City of arrival", city),
         Param(("date", "day"), "Day of travel", one_of(*DAYS), optional=True)),
        ("Book a flight from {origin} to {destination}.", "Find a flight from {origin} to {destination} on {date}.",
         "I want to fly from {origin} to {destination}.", "Book a flight from {origin} to {destination} for {date}.",
         "Find flights from {origin} to {destination}.", "I need a flight to {destination} from {origin}."),
    ),
    "order": Family(
        ("get_order", "order_status", "track_order", "lookup_order"),
        ("Get the status of an order", "Look up an order", "Track an order"),
        (Param(("order_id", "id", "order"), "The order number", order_code),),
        ("Where is order {order_id}?", "What is the status of order {order_id}?", "Track order {order_id}.",
         "Look up order {order_id}.", "Has order {order_id} been sent?"),
    ),
    "message": Family(
        ("send_message", "send_text", "message", "send_sms"),
        ("Send a text message", "Send a message to a person", "Text someone"),
        (Param(("name", "recipient", "to", "person"), "Who gets it", full_name),
         Param(("text", "message", "body"), "The text to send", errand)),
        ("Text {name}: {text}.", "Send {name} a message: {text}.", 'Message {name} "{text}".',
         "Tell {name} by text: {text}."),
    ),
    "date": Family(
        ("get_date", "today", "current_date", "get_today"),
        ("Get the date of today", "Tell the current date", "Get the current date"),
        (),
        ("What day is it today?", "What is the date today?", "What's the date?", "Which day is it?", "Today's date?"),
    ),
}  # fmt: skip
