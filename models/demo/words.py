"""Word pools that the task generators draw from, and the split that keeps held-out values out of training."""

import hashlib
import random
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "test"]

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Switzerland": "Bern", "Belgium": "Brussels", "Netherlands": "Amsterdam",
    "Denmark": "Copenhagen", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki", "Iceland": "Reykjavik",
    "Ireland": "Dublin", "England": "London", "Scotland": "Edinburgh", "Poland": "Warsaw", "Hungary": "Budapest",
    "Romania": "Bucharest", "Bulgaria": "Sofia", "Greece": "Athens", "Turkey": "Ankara", "Ukraine": "Kyiv",
    "Russia": "Moscow", "Serbia": "Belgrade", "Croatia": "Zagreb", "Slovenia": "Ljubljana", "Slovakia": "Bratislava",
    "Estonia": "Tallinn", "Latvia": "Riga", "Lithuania": "Vilnius", "Albania": "Tirana", "Malta": "Valletta",
    "Cyprus": "Nicosia", "Egypt": "Cairo", "Morocco": "Rabat", "Algeria": "Algiers", "Tunisia": "Tunis",
    "Kenya": "Nairobi", "Ghana": "Accra", "Nigeria": "Abuja", "Senegal": "Dakar", "Ethiopia": "Addis Ababa",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Nepal": "Kathmandu", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Philippines": "Manila", "Mongolia": "Ulaanbaatar",
    "Iran": "Tehran", "Iraq": "Baghdad", "Australia": "Canberra", "Canada": "Ottawa", "Mexico": "Mexico City",
    "Cuba": "Havana", "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima",
    "Colombia": "Bogota",
}  # fmt: skip

FIRST_NAMES = (
    "Alice Anna Adam Amir Bob Bella Ben Carla Carlos Chen Clara Daniel David Diana Elena Emma Erik Eva Felix Fatima "
    "Frank George Grace Hana Hannah Henry Hugo Ida Igor Ines Isaac Ivan Jack James Jane John Jonas Julia Karim Kate "
    "Laura Lena Leo Liam Lucas Lucy Marco Maria Mark Martha Mary Maya Mia Mike Mina Nadia Nina Noah Nora Olga Oliver "
    "Omar Oscar Otto Paul Paula Peter Petra Priya Quentin Rachel Raj Rita Robert Rosa Ruth Sam Sara Sofia Stefan Sven "
    "Tara Theo Thomas Tim Tina Tom Ursula Vera Victor Viktor Walter Wanda Wendy Xavier Yara Yuki Yusuf Zara Zoe"
).split()

LAST_NAMES = (
    "Adams Bauer Becker Brown Costa Diaz Evans Fischer Garcia Haas Ito Jansen Khan Kim Klein Lopez Meyer Moreau "
    "Nakamura Novak Okafor Olsen Patel Petrov Rossi Santos Sato Schmidt Silva Singh Smith Tanaka Taylor Weber Wilson "
    "Wong Young"
).split()

CITIES = (
    "Boston|Chicago|Denver|Seattle|Dallas|Miami|Austin|Toronto|Montreal|Munich|Hamburg|Cologne|Frankfurt|Dresden|"
    "Leipzig|Milan|Naples|Turin|Venice|Florence|Barcelona|Seville|Valencia|Porto|Lyon|Nice|Toulouse|Marseille|Zurich|"
    "Geneva|Basel|Salzburg|Graz|Antwerp|Ghent|Rotterdam|Utrecht|Oxford|Cambridge|Manchester|Liverpool|Leeds|Glasgow|"
    "Cork|Bergen|Malmo|Krakow|Gdansk|Istanbul|Dubai|Mumbai|Chennai|Osaka|Kyoto|Sydney|Melbourne|Perth|Lagos|"
    "Cape Town|New York|San Diego|San Francisco|Los Angeles|Las Vegas|New Orleans|Hong Kong|Singapore|Sao Paulo|"
    "Tel Aviv|Abu Dhabi|Santa Fe|Palo Alto"
).split("|")

TOPICS = (
    "cheap flights|solar panels|bread recipes|chess openings|garden plants|winter tyres|electric cars|piano lessons|"
    "stock markets|train tickets|city maps|coffee beans|running shoes|dog food|cat toys|rain clouds|mountain bikes|"
    "football scores|movie reviews|ocean currents|black holes|old castles|tax rules|camera lenses|paper planes|"
    "board games|wind turbines|pasta sauce|jazz music|green tea|learning rust|python tutorials|space probes|"
    "best hiking trails|local news|history of glass|how to bake cakes|how to fix a bike|vegan cooking|birds of prey|"
    "volcano eruptions|open source licences|cheap hotels|spicy noodles|night trains|violin makers|desert animals|"
    "river cruises|sailing boats|ancient temples|marathon training|quantum computers|honey bees|steel bridges"
).split("|")

ERRANDS = (
    "lunch|dinner|dentist|team meeting|yoga class|piano lesson|project review|doctor visit|haircut|book club|"
    "sales call|budget talk|job interview|car service|parents evening|swimming|gym|brunch|board meeting|"
    "design review|school trip|vet visit|tax deadline|birthday party|concert|flight home|coffee break|garden work|"
    "status call|movie night|invoice|holiday plans|new offer|travel costs|weekly report|broken printer|office keys|"
    "parking space|lost badge"
).split("|")

SONGS = (
    "Blue River|Silent Moon|Golden Hour|Night Drive|Summer Rain|Paper Stars|Lost Highway|Winter Song|Glass Heart|"
    "Red Balloon|Ocean Eyes|Wild Roses|Broken Strings|Morning Light|Silver Train|Dancing Shadows|Northern Wind"
).split("|")

ONSETS = "b c d f g h j k l m n p r s t v w z br dr gr kr st tr pl sh th".split()
VOWELS = "a e i o u a e i o ai ea ou".split()
CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "k", "x"]

HELD_OUT_ONE_IN = 8


def is_held_out(value: str) -> bool:
    """Whether a slot value (case-folded) is kept for the test split: one in eight, by its hash."""
    return hashlib.blake2b(value.casefold().encode(), digest_size=4).digest()[0] % HELD_OUT_ONE_IN == 0


def on_side(value: str, split: Split) -> bool:
    return is_held_out(value) == (split == "test")


def pick(rng: random.Random, pool: Sequence[str], split: Split) -> str:
    """Draw from the part of `pool` that belongs to `split`."""
    while True:
        value = rng.choice(pool)
        if on_side(value, split):
            return value


def integer(rng: random.Random, low: int, high: int, split: Split) -> int:
    """Draw an integer in [low, high] whose decimal form belongs to `split`."""
    while True:
        value = rng.randint(low, high)
        if on_side(str(value), split):
            return value


def syllables(rng: random.Random, num_syllables: int) -> str:
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(num_syllables))


def coined(rng: random.Random, split: Split) -> str:
    """A made-up lower-case word of 3 to 10 letters."""
    while True:
        word = syllables(rng, rng.choice((1, 2, 2, 2, 3)))
        if 3 <= len(word) <= 10 and on_side(word, split):
            return word


def short_string(rng: random.Random, split: Split) -> str:
    """A string of 2 to 9 characters: a coined word, random letters, or letters and digits."""
    while True:
        kind = rng.random()
        if kind < 0.55:
            text = coined(rng, split)
        elif kind < 0.9:
            text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8)))
        else:
            text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randint(3, 7)))
        if len(text) <= 9 and on_side(text, split):
            return text


def first_name(rng: random.Random, split: Split) -> str:
    return pick(rng, FIRST_NAMES, split) if rng.random() < 0.4 else coined(rng, split).capitalize()


def full_name(rng: random.Random, split: Split) -> str:
    """A first name, with a surname one time in three."""
    given = first_name(rng, split)
    if rng.random() < 0.67:
        return given
    return f"{given} {pick(rng, LAST_NAMES, split) if rng.random() < 0.5 else coined(rng, split).capitalize()}"


def city(rng: random.Random, split: Split) -> str:
    kind = rng.random()
    if kind < 0.3:
        return pick(rng, CITIES, split)
    if kind < 0.55:
        return pick(rng, tuple(CAPITALS.values()), split)
    return coined(rng, split).capitalize()


NOT_ONLY_IN_SLOTS = frozenset("a to of how new city the for plans class meeting review".split())


def open_words() -> frozenset[str]:
    """Words that only fill slots. They stay out of the vocabulary, so that a slot value is spelled out and copied."""
    pools = (CAPITALS.values(), FIRST_NAMES, LAST_NAMES, CITIES, TOPICS, ERRANDS, SONGS)
    words = {word.casefold() for pool in pools for value in pool for word in value.split()}
    return frozenset(words - NOT_ONLY_IN_SLOTS)
