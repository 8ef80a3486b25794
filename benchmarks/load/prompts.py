"""What a request says: an HTTP body from its plan, a function of the seed and the request's index alone.

Every prompt begins with a word of its own, so that a prefix cache gives away nothing but what the workload shares on
purpose: a system message (`Workload.prefix_tokens`), or the turns of a conversation. ``salt`` keeps two runs of one
seed apart.
"""

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import orjson

from benchmarks.load.schedule import Kind, Planned

Endpoint = Literal["chat", "completions"]

WORDS = tuple(
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name team minute idea body information".split()
)
"""Common words: about one token each for large vocabularies; `Speech.tokens_per_word` says what they are to a model."""

_BABBLE_WORDS = 2**16
_NONCE_WORDS = 3
"""Ten hexadecimal digits are about as many tokens as three words."""

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
JSON_SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"answer": {"type": "string", "maxLength": 64}, "sure": {"type": "boolean"}},
            "required": ["answer", "sure"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Speech:
    """How plans become words. ``extra`` is put into every body, over what is there.

    ``has_min_tokens`` also sends ``min_tokens``, vLLM's way to get answers of exactly the length that was asked for.
    ``tokens_per_word`` and ``overhead_tokens`` turn token counts into words for this model; `benchmarks/load/probe.py`
    measures them.
    """

    model: str
    seed: int
    endpoint: Endpoint = "chat"
    has_min_tokens: bool = True
    tokens_per_word: float = 1.0
    overhead_tokens: float = 0.0
    prefix_tokens: int = 0
    salt: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def question(self, planned: Planned) -> str:
        """The user's part, as long as planned, the shared prefix left out."""
        wanted = planned.prompt_tokens - self.overhead_tokens * (planned.turn == 0)
        digest = hashlib.blake2s(f"{self.seed}/{planned.index}{self.salt}".encode(), digest_size=9).digest()
        # No other request begins with this word: the first block of tokens differs, whatever the vocabulary.
        nonce, place = digest[:5].hex(), int.from_bytes(digest[5:])
        num_words = round(wanted / self.tokens_per_word) - _NONCE_WORDS
        return f"{nonce} {_babble(self.seed).words(place, num_words)}" if num_words > 0 else nonce

    def prefix(self, planned: Planned) -> str:
        """The text that this request shares with others; empty without one."""
        if not self.prefix_tokens:
            return ""
        place = int.from_bytes(
            hashlib.blake2s(f"{self.seed}/prefix/{planned.prefix}{self.salt}".encode(), digest_size=4).digest()
        )
        return _babble(self.seed).words(place, max(1, round(self.prefix_tokens / self.tokens_per_word)))

    def body(self, planned: Planned, said: Sequence[str]) -> bytes:
        """The JSON body. ``said``: question and answer of each earlier turn, then the new question."""
        fields: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": planned.output_tokens,
            "temperature": 0,
        }
        prefix = self.prefix(planned)
        if self.endpoint == "completions":
            fields["prompt"] = "\n".join([prefix, *said] if prefix else said)
        else:
            roles = ("user", "assistant")
            messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
            fields["messages"] = [{"role": "system", "content": prefix}, *messages] if prefix else messages
        if planned.kind is Kind.TOOLS:
            fields |= {"tools": [WEATHER_TOOL], "tool_choice": "required"}
        elif planned.kind is Kind.JSON:
            fields["response_format"] = JSON_SCHEMA
        elif self.has_min_tokens:
            fields["min_tokens"] = planned.output_tokens
        return orjson.dumps(fields | self.extra)


@dataclass(frozen=True, slots=True)
class _Babble:
    """A long text of random words, of which any stretch costs no more than a slice: drawing words one by one for each
    request would cost the generator more than sending it."""

    text: str
    starts: Sequence[int]
    """Where each word begins, and where the one after the last would."""

    def words(self, place: int, number: int) -> str:
        """``number`` words from any ``place`` on; longer than the text, it begins again."""
        num_known = len(self.starts) - 1
        if number > num_known // 2:
            return " ".join([self.words(place, num_known // 2), self.words(place + 1, number - num_known // 2)])
        first = place % (num_known - number + 1)
        return self.text[self.starts[first] : self.starts[first + number] - 1]


@functools.cache
def _babble(seed: int) -> _Babble:
    words = random.Random(seed).choices(WORDS, k=_BABBLE_WORDS)
    return _Babble(" ".join(words), tuple(accumulate((len(word) + 1 for word in words), initial=0)))
