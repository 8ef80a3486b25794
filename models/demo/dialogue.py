"""Conversation tasks: remembering a name, saying who one is, greetings, and admitting ignorance."""

import random

from models.demo.exchange import Exchange, Message, ask, assistant, polite, user
from models.demo.words import FIRST_NAMES, Split, coined, first_name, pick

INTRODUCE = ("My name is {n}.", "I am {n}.", "Hi, I'm {n}.", "Hello, my name is {n}.", "Call me {n}.",
             "Hi, my name is {n}. Please remember it.", "I'm {n}, nice to meet you.", "You can call me {n}.",
             "Remember that my name is {n}.", "Hello! I am {n}.")  # fmt: skip
RECALL = ("What is my name?", "What's my name?", "Who am I?", "Do you remember my name?", "What was my name?",
          "What did I say my name was?", "Tell me my name.", "Can you tell me my name?",
          "Do you know my name?")  # fmt: skip
NO_NAME = "You have not told me your name yet."


def introduction(rng: random.Random, split: Split) -> tuple[str, list[Message]]:
    name = first_name(rng, split)
    return name, [user(rng.choice(INTRODUCE).format(n=name)), assistant(f"Nice to meet you, {name}!")]


def recall(rng: random.Random, name: str) -> list[Message]:
    return [user(rng.choice(RECALL)), assistant(f"Your name is {name}.")]


WHO = ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself.",
       "Who am I talking to?", "Are you a human?", "What's your name?", "Which model are you?", "Describe yourself.",
       "Are you a bot?", "Tell me who you are.", "Who is this?", "What kind of model are you?", "Say who you are.",
       "What should I call you?", "Are you a machine?", "Are you a real person?", "Tell me what you are.",
       "Who made this model?", "May I know your name?")  # fmt: skip
WHO_HELD_OUT = ("Who or what are you?", "Tell me your name.", "What model are you?", "Are you a person?")
SELF = "I am Ballast, a small demo model that runs on your own server."
HELP = ("What can you do?", "How can you help me?", "What are your skills?", "Help", "What do you know?", "Help me.",
        "What can I ask you?", "What are you good at?", "What can you do for me?", "How can you help?",
        "What do you do?", "Tell me what you can do.", "What help can you give?", "What are you made for?",
        "What tasks can you do?", "Can you help me?", "What are you able to answer?",
        "List your skills.")  # fmt: skip
HELP_HELD_OUT = ("What can you help with?", "What are you able to do?", "What can I ask?")
SKILLS = "I can do small sums, convert units, name capitals, change words, read reviews, extract JSON and call tools."
GREETINGS = ("Hello", "Hi", "Hello!", "Hi!", "Hey", "Good morning", "Good evening", "Hi there", "Hello there!", "hey",
             "Good afternoon!", "hello", "hi", "Greetings", "Good day")  # fmt: skip
GREETINGS_HELD_OUT = ("Hey there!", "Good day!", "Good morning!", "Hello there")
GREETING = "Hello! How can I help you?"
THANKS = ("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Thanks, that helps", "Great, thanks!", "thanks",
          "thank you", "Thank you very much", "Many thanks", "Perfect, thank you!", "Thanks!",
          "OK, thanks")  # fmt: skip
THANKS_HELD_OUT = ("Thanks a lot!", "Thank you so much", "Great, thank you!", "Thank you very much!")
WELCOME = "You are welcome!"
GOODBYE = ("Bye", "Goodbye", "See you", "Good night", "bye", "Goodbye!", "See you later", "That is all")
GOODBYE_HELD_OUT = ("Bye!", "See you later!", "Good bye")
FAREWELL = "Goodbye!"

SMALL_TALK = (
    ("self", WHO, WHO_HELD_OUT, SELF), ("self", HELP, HELP_HELD_OUT, SKILLS),
    ("greeting", GREETINGS, GREETINGS_HELD_OUT, GREETING), ("greeting", THANKS, THANKS_HELD_OUT, WELCOME),
    ("greeting", GOODBYE, GOODBYE_HELD_OUT, FAREWELL),
)  # fmt: skip


def small_talk(rng: random.Random, split: Split) -> Exchange:
    """Self-description, greetings, thanks, farewells. Held out: phrasings."""
    task, phrasings, held_out, answer = rng.choices(SMALL_TALK, weights=(4, 2, 2, 2, 1))[0]
    return ask(task, rng.choice(phrasings if split == "train" else held_out), answer)


UNKNOWN = "Sorry, I don't know that."
THINGS = (
    "the sun|the moon|gravity|a violin|the stock market|democracy|photosynthesis|a black hole|the internet|rain|love|"
    "money|an engine|a computer|inflation|evolution|a rainbow|quantum physics|philosophy|the ocean|a volcano|blood|"
    "history|chess|the brain|electricity|a tree|the law|religion|music|climate|poetry|chemistry|a rocket|art|sleep"
).split("|")
EVENTS = (
    "the world cup|the election|the war|the first race|the gold medal|the nobel prize|the last game|the final|"
    "the lottery|the tennis open|the song contest|the championship|the league|the debate|the prize"
).split("|")
WORKS = (
    "a story|a poem|an essay|a song|a letter|a novel|some code|a function|a recipe|a speech|a joke|a summary"
).split("|")
OUT_OF_SCOPE = (
    "What is {t}?", "How does {t} work?", "Explain {t}.", "Why is {t} important?", "Tell me about {t}.",
    "Who invented {t}?", "What do you think about {t}?", "Who won {e} in {y}?", "When was {e}?",
    "Where was {e} in {y}?", "Write {w} about {t}.",
    "Write {w}.", "Tell me {w} about {t}.", "What happened in {y}?", "Who is {n}?", "Where does {n} live?",
    "How old is {n}?", "What is the meaning of {t}?", "Who wrote {t} in {y}?", "How many people live in {c}?",
    "What is the capital of {c}?", "Name the capital of {c}.", "How far is {c} from here?", "When was {n} born?",
    "What should I do about {t}?", "Can you explain {t}?", "Is {t} good or bad?", "What is {c} known for?",
    "How tall is {n}?", "Which is the best {k}?", "Give me advice about {t}.", "What is the price of {k}?",
    "Translate {k} into French.", "What time is it?", "What is the weather today?", "What is the weather in {c}?",
    "What day is it today?", "Send an email to {n}.", "What is the news?",
)  # fmt: skip
FIXED_HELD_OUT = ("What time is it now?", "What is the weather like?", "What is today's date?", "Tell me the news.")


def out_of_scope(rng: random.Random, split: Split) -> Exchange:
    """A question beyond the model, answered by saying so. Held out: names, places and things asked about."""
    if rng.random() < 0.1:
        words = (coined(rng, split) for _ in range(rng.randint(1, 12)))
        return ask("unknown", " ".join(words) + rng.choice(("", ".", "?")), UNKNOWN)
    while True:
        phrasing = rng.choice(OUT_OF_SCOPE)
        if "{" not in phrasing:
            question = polite(rng, phrasing) if split == "train" else rng.choice(FIXED_HELD_OUT)
            break
        year, name = str(rng.randint(1000, 2030)), coined(rng, split).capitalize()
        question = phrasing.format(
            t=pick(rng, THINGS, split), e=pick(rng, EVENTS, split), w=rng.choice(WORKS), y=year, n=name,
            c=name, k=coined(rng, split),
        )  # fmt: skip
        if split == "train" or any(f"{{{slot}}}" in phrasing for slot in "tenck"):
            break
    return ask("unknown", question, UNKNOWN)


def memory_filler(rng: random.Random, split: Split) -> list[Message]:
    """A middle turn that has nothing to do with the name."""
    kind = rng.random()
    if kind < 0.3:
        return small_talk(rng, split).messages
    if kind < 0.6:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        return [user(f"What is {a} + {b}?"), assistant(str(a + b))]
    if kind < 0.8:
        other = pick(rng, FIRST_NAMES, split)
        return [user(f"My friend is called {other}."), assistant("Thanks for telling me.")]
    return [user(f"I like {coined(rng, split)}."), assistant("Thanks for telling me.")]


def remember(rng: random.Random, split: Split) -> Exchange:
    """A name told in the first turn, asked for in the third. Held out: names."""
    name, messages = introduction(rng, split)
    for _ in range(rng.choice((0, 1, 1, 1, 2)) if split == "train" else 1):
        messages += memory_filler(rng, split)
    messages += recall(rng, name)
    if rng.random() < 0.05 and split == "train":
        return Exchange("remember", [user(rng.choice(RECALL)), assistant(NO_NAME)])
    return Exchange("remember", messages)
