"""API keys: their text, their digest, and what is stored about one. Pure: randomness and time are arguments.

    blst_live_<id: 8 base-62 digits>_<secret: 43 base-62 digits>_<CRC-32: 8 hex digits>        71 characters in all

The secret carries 256 random bits, so a fast keyed hash is enough (a password would need a slow one). The checksum lets
a typing error or a scanner's junk be refused before any look-up, and lets secret scanners recognise a leaked key.
"""

import hmac
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from serving.errors import OperatorError

Rng = Callable[[int], bytes]
"""``rng(n)`` gives ``n`` random bytes: ``os.urandom``, or a scripted source in a test."""

PREFIX = "blst_live_"
ID_LENGTH = 8
SECRET_LENGTH = 43  # 62**43 > 2**256
CHECKSUM_LENGTH = 8
KEY_LENGTH = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + 1 + CHECKSUM_LENGTH
DIGEST_BYTES = 32

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY_PATTERN = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}_([0-9a-f]{{{CHECKSUM_LENGTH}}})"
)
_LABEL_PATTERN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@+-]{0,63}")
_MODEL_PATTERN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:/@+-]{0,255}")

ANONYMOUS = "anonymous"
"""Who calls a server that has no keys. No key and no tenant may take this name."""

KeyState = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key. The plaintext exists here and on the operator's screen, nowhere else."""

    key_id: str
    plaintext: str = field(repr=False)

    @property
    def last4(self) -> str:
        return self.plaintext[-4:]


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """Text that has the form and the checksum of a key. That it was ever issued is not said."""

    key_id: str
    plaintext: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewKey:
    """What an operator asks for. ``tenant`` defaults to ``name``; ``models`` of None allows every model.

    Raises OperatorError when a name could not be printed, logged or used as a metric label safely.
    """

    name: str
    tenant: str = ""
    models: tuple[str, ...] | None = None
    expires_at_s: float | None = None

    def __post_init__(self) -> None:
        if not self.tenant:
            object.__setattr__(self, "tenant", self.name)
        for kind, label in (("name", self.name), ("tenant", self.tenant)):
            if not _LABEL_PATTERN.fullmatch(label):
                raise OperatorError(
                    f"A key's {kind} is 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, beginning with a letter or a "
                    f"digit; {label[:80]!r} is not."
                )
            if label == ANONYMOUS:
                raise OperatorError(f"{ANONYMOUS!r} is the {kind} of callers without a key; choose another.")
        if self.models is not None and not self.models:
            raise OperatorError("An empty model list would allow nothing; name a model, or leave the list out for all.")
        for model in self.models or ():
            if not _MODEL_PATTERN.fullmatch(model):
                raise OperatorError(f"{model[:80]!r} cannot be a model's name.")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is stored about a key. Times are seconds since 1970 UTC; ``models`` of None allows every model."""

    key_id: str
    name: str
    tenant: str
    digest: bytes = field(repr=False)
    last4: str
    models: tuple[str, ...] | None
    created_at_s: float
    expires_at_s: float | None = None
    revoked_at_s: float | None = None
    last_used_at_s: float | None = None

    def state(self, now_s: float) -> KeyState:
        if self.revoked_at_s is not None:
            return "revoked"
        if self.expires_at_s is not None and now_s >= self.expires_at_s:
            return "expired"
        return "active"


def mint(rng: Rng) -> MintedKey:
    """Make a key with 256 random bits."""
    key_id = _base62(int.from_bytes(rng(8)) % 62**ID_LENGTH, ID_LENGTH)
    body = f"{PREFIX}{key_id}_{_base62(int.from_bytes(rng(32)), SECRET_LENGTH)}"
    return MintedKey(key_id=key_id, plaintext=f"{body}_{_checksum(body)}")


def parse(text: str) -> ParsedKey | None:
    """Read a key, or None when the text cannot be one (form or checksum)."""
    match = _KEY_PATTERN.fullmatch(text) if len(text) == KEY_LENGTH else None
    if match is None or _checksum(text[: -CHECKSUM_LENGTH - 1]) != match[2]:
        return None
    return ParsedKey(key_id=match[1], plaintext=text)


def digest(pepper: bytes, plaintext: str) -> bytes:
    """HMAC-SHA256 of the whole key text: what is stored, compared and used as cache key."""
    return hmac.digest(pepper, plaintext.encode("ascii"), "sha256")


def same_digest(left: bytes, right: bytes) -> bool:
    """Compare in time that does not depend on where they differ."""
    return hmac.compare_digest(left, right)


def record(new: NewKey, minted: MintedKey, pepper: bytes, now_s: float) -> KeyRecord:
    """What to store about a key that was just minted."""
    return KeyRecord(
        key_id=minted.key_id,
        name=new.name,
        tenant=new.tenant,
        digest=digest(pepper, minted.plaintext),
        last4=minted.last4,
        models=new.models,
        created_at_s=now_s,
        expires_at_s=new.expires_at_s,
    )


def derive_secret(pepper: bytes, label: str) -> bytes:
    """A secret for another purpose. ``label`` must not begin like a key, or the result could equal a key's digest."""
    assert not label.startswith(PREFIX)
    return hmac.digest(pepper, label.encode(), "sha256")


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode('ascii')):08x}"


def _base62(number: int, length: int) -> str:
    """``number`` in base 62, zero-padded. The caller sees to it that it fits."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
