"""Before a run: does the server answer at all, and how many tokens is a word to its model?"""

import asyncio
import json
from dataclasses import replace
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from benchmarks.load.answer import Answer
from benchmarks.load.client import Client
from benchmarks.load.mistake import BenchError
from benchmarks.load.prompts import Speech
from benchmarks.load.schedule import NEVER, Kind, Planned
from benchmarks.load.target import Target

_SHORT_WORDS, _LONG_WORDS = 40, 240
_TIMEOUT_S = 120.0


def first_model(target: Target) -> str:
    """The first name that /v1/models lists. Raises BenchError."""
    request = Request(f"{target.url}/models", headers={"authorization": f"Bearer {target.key}"} if target.key else {})  # noqa: S310
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310  (the operator's own URL)
            return str(json.load(response)["data"][0]["id"])
    except HTTPError as error:
        hint = "; put the key into the variable that --key-env names" if error.code == 401 else ""
        raise BenchError(f"{target.url}/models answers HTTP {error.code}{hint}; name the model with --model") from error
    except (URLError, OSError) as error:
        raise BenchError(
            f"no server answers at {target.url}: {error}; start one, or name another with --url"
        ) from error
    except HTTPException as error:
        raise BenchError(
            f"what listens at {target.url} does not speak HTTP: {error!r}; name an HTTP server's port with --url"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BenchError(f"{target.url}/models lists no model; name one with --model") from error


def learn_speech(target: Target, speech: Speech) -> Speech:
    """``speech`` with what a word costs this model, from two short requests. Raises BenchError when one fails.

    A server that counts no tokens (no usage in its stream) leaves a word at one token.
    """
    short, long = (asyncio.run(_prompt_tokens(target, speech, number)) for number in (_SHORT_WORDS, _LONG_WORDS))
    if not short or long <= short:
        return speech
    tokens_per_word = (long - short) / (_LONG_WORDS - _SHORT_WORDS)
    return replace(
        speech, tokens_per_word=tokens_per_word, overhead_tokens=max(0.0, short - _SHORT_WORDS * tokens_per_word)
    )


async def _prompt_tokens(target: Target, speech: Speech, num_words: int) -> int:
    plain = replace(speech, tokens_per_word=1.0, overhead_tokens=0.0, prefix_tokens=0)
    planned = Planned(-num_words, 0.0, 0, 0, num_words, 2, 0, Kind.PLAIN, NEVER, False)
    answer = Answer()
    client = Client(target, speech.endpoint)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await client.ask(plain.body(planned, [plain.question(planned)]), answer)
    except TimeoutError:
        raise BenchError(f"{target.url} gave no answer to a first request within {_TIMEOUT_S:g} s") from None
    finally:
        client.close()
    if problem := answer.problem():
        hint = "; it may not know min_tokens: try --no-min-tokens" if answer.status in (400, 422) else ""
        raise BenchError(f"{target.url} refuses a first request: {problem}{hint}")
    return answer.prompt_tokens
