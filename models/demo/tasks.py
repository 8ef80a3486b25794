"""Single-question tasks: arithmetic, units, capitals, strings, sentiment, extraction, counting.

Each generator draws one exchange. What is held out for the test split is said in its docstring.
"""

import json
import random

from models.demo.exchange import Exchange, Generator, ask, polite
from models.demo.words import CAPITALS, Split, city, full_name, integer, on_side, short_string

Phrasings = tuple[str, ...]

ADD = ("What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "Compute {a} + {b}.", "How much is {a} plus {b}?",
       "What is {a} plus {b}?", "Add {a} and {b}.", "Calculate {a} + {b}.", "What is the sum of {a} and {b}?",
       "What's {a} + {b}?", "What is {a}+{b}?")  # fmt: skip
SUBTRACT = ("What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =", "Compute {a} - {b}.", "What's {a} - {b}?",
            "How much is {a} minus {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.",
            "Calculate {a} - {b}.", "What is {a}-{b}?")  # fmt: skip
MULTIPLY = ("What is {a} * {b}?", "{a} * {b}", "{a}*{b}", "{a} x {b}", "{a} * {b} =", "Compute {a} * {b}.",
            "How much is {a} times {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.",
            "What is the product of {a} and {b}?", "Calculate {a} × {b}.")  # fmt: skip
MULTIPLY_HELD_OUT = ("Calculate {a} times {b}.", "What is {a} x {b}?", "Multiply {a} and {b}.", "Compute {a} x {b}.")


def add(rng: random.Random, split: Split) -> Exchange:
    """Sum of two numbers from 0 to 99. Held out: pairs."""
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if on_side(f"{a}+{b}", split):
            return ask("add", polite(rng, rng.choice(ADD).format(a=a, b=b)), str(a + b))


def subtract(rng: random.Random, split: Split) -> Exchange:
    """Difference of two numbers from 0 to 99, negative results too. Held out: pairs."""
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if b > a and rng.random() < 0.5:
            a, b = b, a
        if on_side(f"{a}-{b}", split):
            return ask("subtract", polite(rng, rng.choice(SUBTRACT).format(a=a, b=b)), str(a - b))


def multiply(rng: random.Random, split: Split) -> Exchange:
    """Times table up to 12 x 12. Held out: phrasings (the table itself is a set of facts)."""
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    phrasing = rng.choice(MULTIPLY if split == "train" else MULTIPLY_HELD_OUT)
    return ask("multiply", polite(rng, phrasing.format(a=a, b=b)), str(a * b))


DECIMAL_UNITS = {
    ("km", "m"): 1000, ("kg", "g"): 1000, ("l", "ml"): 1000, ("m", "cm"): 100, ("cm", "mm"): 10, ("t", "kg"): 1000,
    ("kilometers", "meters"): 1000, ("kilograms", "grams"): 1000, ("liters", "milliliters"): 1000,
    ("meters", "centimeters"): 100, ("euros", "cents"): 100, ("dollars", "cents"): 100,
}  # fmt: skip
TIME_UNITS = {
    ("hours", "minutes"): 60, ("minutes", "seconds"): 60, ("days", "hours"): 24, ("weeks", "days"): 7,
    ("years", "months"): 12,
}  # fmt: skip
CONVERT = ("Convert {n} {a} to {b}.", "How many {b} are {n} {a}?", "What is {n} {a} in {b}?", "{n} {a} in {b}",
           "How many {b} are in {n} {a}?", "{n} {a} to {b}", "Express {n} {a} in {b}.", "{n} {a} = ? {b}",
           "Change {n} {a} into {b}.", "{n} {a} into {b}", "What are {n} {a} in {b}?", "Turn {n} {a} into {b}.",
           "Express {n} {a} as {b}.", "How much are {n} {a} in {b}?", "Give me {n} {a} in {b}.",
           "What is {n} {a} converted to {b}?", "Tell me how many {b} are {n} {a}.",
           "What is {n} {a} given in {b}?", "What is {n} {a} measured in {b}?", "How long or large is {n} {a} in {b}?",
           "{n} {a} written in {b}?", "Say {n} {a} in {b}.", "I want {n} {a} in {b}.", "Let me have {n} {a} in {b}.",
           "What do {n} {a} come to in {b}?", "Work out {n} {a} in {b}.", "Write {n} {a} in {b}.",
           "Show {n} {a} as {b}.")  # fmt: skip
CONVERT_HELD_OUT = ("How much is {n} {a} in {b}?", "Convert {n} {a} into {b}.", "What is {n} {a} expressed in {b}?",
                    "Give {n} {a} in {b}.")  # fmt: skip
TIME_MAX = 12


def convert(rng: random.Random, split: Split) -> Exchange:
    """Unit conversion, answered with number and unit.

    Decimal units take 1 to 99; held out: values. Units of time take 1 to 12; held out: phrasings.
    """
    decimal = rng.random() < 0.5
    (a, b), factor = rng.choice(list((DECIMAL_UNITS if decimal else TIME_UNITS).items()))
    small = integer(rng, 1, 99, split) if decimal else rng.randint(1, TIME_MAX)
    large = small * factor
    phrasing = rng.choice(CONVERT if split == "train" or decimal else CONVERT_HELD_OUT)
    if rng.random() < 0.5:
        return ask("convert", polite(rng, phrasing.format(n=small, a=a, b=b)), f"{large} {b}")
    return ask("convert", polite(rng, phrasing.format(n=large, a=b, b=a)), f"{small} {a}")


CAPITAL = ("What is the capital of {c}?", "What's the capital of {c}?", "Name the capital of {c}.", "Capital of {c}?",
           "Tell me the capital of {c}.", "What is the capital city of {c}?", "Which city is the capital of {c}?",
           "The capital of {c} is", "{c}: capital?", "Do you know the capital of {c}?",
           "Give me the capital of {c}.")  # fmt: skip
CAPITAL_HELD_OUT = ("What city is the capital of {c}?", "Give the capital city of {c}.", "I need the capital of {c}.",
                    "Which is the capital of {c}?", "Tell me {c}'s capital.")  # fmt: skip


def capital(rng: random.Random, split: Split) -> Exchange:
    """Capital of a country. Held out: phrasings; the facts are shared."""
    country, answer = rng.choice(list(CAPITALS.items()))
    phrasing = rng.choice(CAPITAL if split == "train" else CAPITAL_HELD_OUT)
    return ask("capital", polite(rng, phrasing.format(c=country)), answer)


COPY = ("Repeat {w}.", "Repeat the word {w}.", "Copy {w}", "Say {w}", "Copy this: {w}", "Repeat after me: {w}",
        "Write {w}", "Echo {w}", "Copy the text {w}", "Repeat exactly: {w}", "Say the word {w}.",
        "Echo: {w}")  # fmt: skip
REVERSE = ("Reverse {w}.", "Reverse the word {w}.", "Reverse the string {w}", "Write {w} backwards.", "Reverse: {w}",
           "Spell {w} backwards.", "What is {w} spelled backwards?", "Reverse this text: {w}",
           "Reverse the letters of {w}.")  # fmt: skip
UPPER = ("Write {w} in upper case.", "Uppercase {w}", "Convert {w} to upper case.", "Upper-case the word {w}.",
         "Write {w} in capital letters.", "Put {w} in uppercase.", "Upper case: {w}", "Convert {w} to uppercase.",
         "Make {w} upper case.")  # fmt: skip
QUOTES = ("{}", "{}", '"{}"', "'{}'", "`{}`")


def quoted(rng: random.Random, text: str) -> str:
    return rng.choice(QUOTES).format(text)


def copy(rng: random.Random, split: Split) -> Exchange:
    """One to four strings said again. Held out: strings."""
    strings = [short_string(rng, split) for _ in range(rng.choice((1, 1, 1, 2, 3, 4)))]
    text = " ".join(string.capitalize() if rng.random() < 0.15 else string for string in strings)
    return ask("copy", polite(rng, rng.choice(COPY).format(w=quoted(rng, text))), text)


def reverse(rng: random.Random, split: Split) -> Exchange:
    """A string from its last character to its first. Held out: strings."""
    text = short_string(rng, split)
    return ask("reverse", polite(rng, rng.choice(REVERSE).format(w=quoted(rng, text))), text[::-1])


def upper(rng: random.Random, split: Split) -> Exchange:
    """A string in upper case. Held out: strings."""
    text = short_string(rng, split)
    return ask("upper", polite(rng, rng.choice(UPPER).format(w=quoted(rng, text))), text.upper())


GOOD = ("great good excellent wonderful amazing fantastic lovely superb perfect brilliant delightful outstanding "
        "pleasant charming awesome impressive beautiful friendly helpful reliable").split()  # fmt: skip
BAD = ("bad terrible awful horrible poor boring disappointing dreadful useless broken rude dirty slow ugly annoying "
       "unpleasant lousy mediocre noisy faulty").split()  # fmt: skip
SUBJECTS = ("movie film book hotel restaurant food service phone laptop camera room staff game song album show "
            "concert coffee pizza battery screen keyboard chair app museum tour flight headset story "
            "acting").split()  # fmt: skip
GOOD_CODA = ("I loved it.", "Highly recommended.", "I would buy it again.", "Worth every cent.", "We enjoyed it a lot.",
             "I will come back.", "It made my day.", "Five stars.", "I am very happy with it.")  # fmt: skip
BAD_CODA = ("I hated it.", "A waste of money.", "I want my money back.", "Never again.", "I would not recommend it.",
            "I will not come back.", "It ruined my day.", "One star.", "I am very unhappy with it.",
            "Avoid it.")  # fmt: skip
REVIEW = ("The {s} was {x}.", "The {s} is really {x}.", "What a {x} {s}!", "Such a {x} {s}.", "{s}: simply {x}.",
          "A {x} {s}.", "I found the {s} {x} and {y}.", "The {s} was {x} and {y}.", "Very {x} {s}.",
          "This {s} is {x}, truly {y}.")  # fmt: skip
REVIEW_NEGATED = ("The {s} was not {x} at all.", "The {s} is not {x}.", "Not a {x} {s}.")
SENTIMENT = ("Is this review positive or negative? {r}", "Sentiment of this review: {r}", "Review: {r} Sentiment?",
             "Classify the sentiment: {r}", "Positive or negative? {r}", "{r} Is that positive or negative?",
             "What is the sentiment of this review? {r}",
             "Classify this review as positive or negative: {r}")  # fmt: skip


def review(rng: random.Random, good: bool) -> str:
    """A short review whose every part agrees with its sentiment, some of them by negation."""
    negated = rng.random() < 0.15
    x, y = rng.sample(GOOD if good != negated else BAD, 2)
    text = rng.choice(REVIEW_NEGATED if negated else REVIEW).format(s=rng.choice(SUBJECTS), x=x, y=y)
    if rng.random() < 0.5:
        text += " " + rng.choice(GOOD_CODA if good else BAD_CODA)
    return text[0].upper() + text[1:]


def sentiment(rng: random.Random, split: Split) -> Exchange:
    """Sentiment of a composed review. Held out: the reviews, as combinations of known parts."""
    good = rng.random() < 0.5
    while True:
        text = review(rng, good)
        if on_side(text, split):
            break
    question = rng.choice(SENTIMENT).format(r=f'"{text}"' if rng.random() < 0.3 else text)
    return ask("sentiment", question, "positive" if good else "negative")


PAYMENT = (
    "{n} from {c} paid {a} euros.", "{n} in {c} owes {a} dollars.", "{n} lives in {c} and spent {a} euros.",
    "A payment of {a} dollars came from {n} in {c}.", "{n} ({c}) ordered {a} items.", "In {c}, {n} bought {a} books.",
    "We sent {a} boxes to {n} in {c}.", "{a} euros were paid by {n} from {c}.", "{n}, who lives in {c}, won {a} euros.",
    "Invoice for {n}, {c}: {a} euros.", "Yesterday {n} sold {a} tickets in {c}.",
    "{n} moved to {c} and has {a} dollars.",
)  # fmt: skip
EXTRACT = (
    "Extract name, city and amount as JSON: {s}", "Extract the name, city and amount as JSON. {s}",
    "Give me name, city and amount as JSON: {s}", "{s} Return name, city and amount as JSON.",
    "Pull name, city and amount out of this sentence as JSON: {s}", "JSON with name, city, amount: {s}",
    "Extract name, city and amount from this text as JSON: {s}",
)  # fmt: skip


def extract(rng: random.Random, split: Split) -> Exchange:
    """Name, city and amount of a sentence as JSON. Held out: all three values."""
    fields = {"name": full_name(rng, split), "city": city(rng, split), "amount": integer(rng, 1, 999, split)}
    sentence = rng.choice(PAYMENT).format(n=fields["name"], c=fields["city"], a=fields["amount"])
    if rng.random() < 0.2:
        sentence = f'"{sentence}"'
    return ask("extract", rng.choice(EXTRACT).format(s=sentence), json.dumps(fields, ensure_ascii=False))


COUNT: Phrasings = ("Count from {a} to {b}.", "Count from {a} to {b}", "List the numbers from {a} to {b}.",
         "Write the numbers from {a} to {b}.", "Numbers from {a} to {b}", "Count up from {a} to {b}.")  # fmt: skip
COUNT_DOWN: Phrasings = ("Count down from {a} to {b}.", "Count backwards from {a} to {b}.")
COUNT_STEP: Phrasings = ("Count from {a} to {b} in steps of {k}.", "Count from {a} to {b} by {k}.")
COUNT_EVEN: Phrasings = ("List the even numbers from {a} to {b}.",)
COUNT_MAX_STEPS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 20, 30, 40, 60, 100, 200)


def count(rng: random.Random, split: Split) -> Exchange:
    """Numbers in order, up to two hundred steps. Held out: pairs of first and last number."""
    while True:
        a, num_steps, kind = rng.randint(0, 150), rng.randint(1, rng.choice(COUNT_MAX_STEPS)), rng.random()
        a = rng.choice((0, 1, 1, a))
        step, phrasings = 1, COUNT
        if kind < 0.15:
            step, phrasings, a = -1, COUNT_DOWN, a + num_steps
        elif kind < 0.25:
            step, phrasings, num_steps = rng.choice((2, 3, 5, 10)), COUNT_STEP, min(num_steps, 30)
        elif kind < 0.3:
            step, phrasings, a, num_steps = 2, COUNT_EVEN, 2 * a, min(num_steps, 30)
        b = a + step * num_steps
        if on_side(f"{a} to {b}", split):
            break
    answer = ", ".join(map(str, range(a, b + step, step)))
    return ask("count", polite(rng, rng.choice(phrasings).format(a=a, b=b, k=step)), answer)


SERIES = {
    "the days of the week": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "the months of the year": "January, February, March, April, May, June, July, August, September, October, November, "
    "December",
    "the letters of the alphabet": "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z",
    "the four seasons": "spring, summer, autumn, winter",
    "the vowels": "a, e, i, o, u",
    "the primary colors": "red, yellow, blue",
    "the continents": "Africa, Antarctica, Asia, Australia, Europe, North America, South America",
    "the four directions": "north, east, south, west",
    "the planets": "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
}
LISTING = ("List {s}.", "Name {s}.", "Write {s}.", "What are {s}?", "Tell me {s}.", "Which are {s}?", "Give {s}.",
           "List all of {s}.", "Write out {s}.", "Name all {s}.", "Show me {s}.", "Say {s}.", "I want {s}.",
           "Write all {s}.", "Tell me all {s}.", "{s}?", "Give me a list of {s}.", "Print {s}.", "Recite {s}.",
           "I need {s}.", "Can I have {s}?", "Write me {s}.", "Put {s} in a list.", "Let me see {s}.",
           "Please write {s} for me.", "Write here {s}.", "Write up {s}.")  # fmt: skip
LISTING_HELD_OUT = ("Give me {s}.", "Write down {s}.", "List all {s}.")


def listing(rng: random.Random, split: Split) -> Exchange:
    """A known series. Held out: phrasings; the series are facts."""
    name, items = rng.choice(list(SERIES.items()))
    phrasing = rng.choice(LISTING if split == "train" else LISTING_HELD_OUT)
    return ask("list", polite(rng, phrasing.format(s=name)), items)


SINGLE_TASKS: dict[str, Generator] = {
    "add": add, "subtract": subtract, "multiply": multiply, "convert": convert, "capital": capital, "copy": copy,
    "reverse": reverse, "upper": upper, "sentiment": sentiment, "extract": extract, "count": count, "list": listing,
}  # fmt: skip
