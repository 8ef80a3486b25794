"""Which replica holds the beginning of a prompt in its KV cache, as far as one gateway has seen."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import orjson

_DIGEST_BYTES = 8
_BLOCK_CHARS = 1024
_MAX_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Home:
    """A replica, and how many bytes of the prompt it has seen before."""

    replica: str
    num_bytes: int


Prefix = tuple[bytes, int]
"""Digest of a prompt up to some point, and the bytes up to there."""


def prefixes(body: dict[str, object], salt: str) -> list[Prefix]:
    """The points up to which two prompts may be the same: after each message of a chat, after each kilobyte of a text.

    ``salt`` keeps tenants apart, as it does in the engine's own cache.
    """
    digest = blake2b(salt.encode(), digest_size=_DIGEST_BYTES)
    if (tools := body.get("tools")) is not None:
        digest.update(orjson.dumps(tools))
    blocks = list(_blocks(body))
    num_unmarked = len(blocks) - _MAX_BLOCKS  # of a long conversation the last turns tell most
    found: list[Prefix] = []
    num_bytes = 0
    for index, block in enumerate(blocks):
        digest.update(block)
        num_bytes += len(block)
        if index >= num_unmarked:
            found.append((digest.digest(), num_bytes))
    return found


def _blocks(body: dict[str, object]) -> Iterable[bytes]:
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list):
        head = [] if "system" not in body else [orjson.dumps(body["system"])]
        return [*head, *map(orjson.dumps, messages)]
    if isinstance(prompt, str):
        end = min(len(prompt), _BLOCK_CHARS * _MAX_BLOCKS)
        return [prompt[start : start + _BLOCK_CHARS].encode() for start in range(0, end, _BLOCK_CHARS)]
    return ()


class Affinity:
    """Remembers, for the newest ``max_prefixes``, the replica that was sent each."""

    def __init__(self, max_prefixes: int = 100_000) -> None:
        self._max_prefixes = max_prefixes
        self._replicas: OrderedDict[bytes, str] = OrderedDict()

    def home(self, points: Sequence[Prefix]) -> Home | None:
        """The replica that has seen most of a prompt."""
        for digest, num_bytes in reversed(points):
            replica = self._replicas.get(digest)
            if replica is not None:
                return Home(replica, num_bytes)
        return None

    def sent(self, points: Sequence[Prefix], replica: str) -> None:
        """The prompt went there."""
        for digest, _ in points:
            self._replicas[digest] = replica
            self._replicas.move_to_end(digest)
        while len(self._replicas) > self._max_prefixes:
            self._replicas.popitem(last=False)
