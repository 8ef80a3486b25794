"""The building blocks of the parameter table: each takes a JSON value and gives back what to send on.

A bound is a number, or the name of a field of ``limits`` that holds it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Protocol, cast

from serving.errors import BadRequest
from serving.gateway import refusal

if TYPE_CHECKING:
    from serving.config.limits import Limits

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)
_EXACT_FLOAT = 2.0**53

Bound = int | str


class Check(Protocol):
    """``path`` is where ``value`` stands, dotted: ``messages[3].content``. Raises BadRequest."""

    def __call__(self, value: object, path: str, limits: "Limits", /) -> object: ...


def at_most(bound: Bound, limits: "Limits") -> int:
    """The number that ``bound`` stands for; a limit of None is none at all."""
    if isinstance(bound, int):
        return bound
    limit = cast("int | None", getattr(limits, bound))
    return INT32_MAX if limit is None else limit


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number; 3.0 is one, as in JSON Schema, and goes on as 3. A float past 2^53 may be another number's."""

    low: int
    high: Bound = INT32_MAX

    def __call__(self, value: object, path: str, limits: "Limits", /) -> int:
        if type(value) is not int and not (type(value) is float and value.is_integer()):
            raise refusal.wrong_type(path, "an integer", value)
        number = int(value)
        high = at_most(self.high, limits)
        if number < self.low:
            raise refusal.too_small(path, number, self.low)
        if number > high:
            raise refusal.too_large(path, number, high)
        if type(value) is float and abs(value) > _EXACT_FLOAT:
            raise refusal.invalid(path, "write so large a number with all its digits")
        return number

    def __str__(self) -> str:
        return f"integer, {named(self.low)} to {named(self.high)}"


@dataclass(frozen=True, slots=True)
class Number:
    """A number from ``low`` to ``high``; ``is_open``: greater than ``low``."""

    low: float
    high: float
    is_open: bool = False

    def __call__(self, value: object, path: str, limits: "Limits", /) -> float:
        if type(value) is not float and type(value) is not int:
            raise refusal.wrong_type(path, "a number", value)
        if value < self.low or (self.is_open and value == self.low):
            raise refusal.too_small(path, value, self.low, exclusive=self.is_open)
        if value > self.high:
            raise refusal.too_large(path, value, self.high)
        return value

    def __str__(self) -> str:
        return f"number, {'over ' if self.is_open else ''}{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Boolean:
    def __call__(self, value: object, path: str, limits: "Limits", /) -> bool:
        if type(value) is not bool:
            raise refusal.wrong_type(path, "a boolean", value)
        return value

    def __str__(self) -> str:
        return "boolean"


@dataclass(frozen=True, slots=True)
class Text:
    """A string; without ``max_chars`` the size of the body bounds it."""

    max_chars: Bound | None = None
    min_chars: int = 0

    def __call__(self, value: object, path: str, limits: "Limits", /) -> str:
        if type(value) is not str:
            raise refusal.wrong_type(path, "a string", value)
        if len(value) < self.min_chars:
            raise refusal.too_short(path, "string")
        if self.max_chars is not None and len(value) > (most := at_most(self.max_chars, limits)):
            raise refusal.too_long(path, "string", len(value), most)
        return value

    def __str__(self) -> str:
        return "string" if self.max_chars is None else f"string, at most {named(self.max_chars)} characters"


class OneOf:
    """One of a few words."""

    __slots__ = ("words",)

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, value: object, path: str, limits: "Limits", /) -> str:
        if type(value) is not str:
            raise refusal.wrong_type(path, "a string", value)
        if value not in self.words:
            raise refusal.not_one_of(path, value, self.words)
        return value

    def __str__(self) -> str:
        return "one of " + ", ".join(f"`{word}`" for word in self.words)


@dataclass(frozen=True, slots=True)
class Array:
    """An array whose items all pass ``item``."""

    item: Check
    max_items: Bound = "max_json_nodes"
    min_items: int = 0

    def __call__(self, value: object, path: str, limits: "Limits", /) -> list[object]:
        if type(value) is not list:
            raise refusal.wrong_type(path, "an array", value)
        if len(value) < self.min_items:
            raise refusal.too_short(path, "array")
        if len(value) > (most := at_most(self.max_items, limits)):
            raise refusal.too_long(path, "array", len(value), most)
        item = self.item
        return [item(element, f"{path}[{index}]", limits) for index, element in enumerate(value)]

    def __str__(self) -> str:
        return f"array of at most {named(self.max_items)}: {described(self.item)}"


@dataclass(frozen=True, slots=True)
class Either:
    """A string, or what ``other`` takes (of JSON type ``kind``)."""

    text: Check
    other: Check
    kind: type

    def __call__(self, value: object, path: str, limits: "Limits", /) -> object:
        if type(value) is str:
            return self.text(value, path, limits)
        if type(value) is self.kind:
            return self.other(value, path, limits)
        expected = "a string or an array" if self.kind is list else "a string or an object"
        raise refusal.wrong_type(path, expected, value)

    def __str__(self) -> str:
        return f"{described(self.text)}; or {described(self.other)}"


@dataclass(frozen=True, slots=True)
class Object:
    """An object with the listed members. A null counts as absent; an unlisted one is dropped, or refused if closed."""

    members: Mapping[str, Check]
    required: tuple[str, ...] = ()
    is_closed: bool = False

    def __call__(self, value: object, path: str, limits: "Limits", /) -> dict[str, object]:
        if type(value) is not dict:
            raise refusal.wrong_type(path, "an object", value)
        kept: dict[str, object] = {}
        for name, member in value.items():
            check = self.members.get(name)
            if check is None:
                if self.is_closed:
                    raise refusal.unknown(f"{path}.{name[:64]}", "")
            elif member is not None:
                kept[name] = check(member, f"{path}.{name}", limits)
        for name in self.required:
            if name not in kept:
                raise refusal.missing(f"{path}.{name}")
        return kept

    def __str__(self) -> str:
        return "object with " + ", ".join(f"`{name}`" for name in self.members)


@dataclass(frozen=True, slots=True)
class OpenObject:
    """An object of any members."""

    max_members: Bound = "max_json_nodes"

    def __call__(self, value: object, path: str, limits: "Limits", /) -> dict[str, object]:
        if type(value) is not dict:
            raise refusal.wrong_type(path, "an object", value)
        if len(value) > (most := at_most(self.max_members, limits)):
            raise refusal.too_long(path, "object", len(value), most)
        return value

    def __str__(self) -> str:
        return "object"


@dataclass(frozen=True, slots=True)
class Labels:
    """An object of short strings by short names, as ``metadata`` is."""

    max_members: int
    max_key_chars: int
    max_value_chars: int

    def __call__(self, value: object, path: str, limits: "Limits", /) -> dict[str, object]:
        labels = OpenObject(self.max_members)(value, path, limits)
        for key, label in labels.items():
            if len(key) > self.max_key_chars:
                raise refusal.invalid(path, f"a key has {len(key)} characters, at most {self.max_key_chars} are taken")
            Text(self.max_value_chars)(label, f"{path}.{key}", limits)
        return labels

    def __str__(self) -> str:
        return f"object of at most {self.max_members} strings"


@dataclass(frozen=True, slots=True)
class Variants:
    """An object whose member ``tag`` says which check applies. ``refused``: tags not served, and why."""

    tag: str
    variants: Mapping[str, Check]
    refused: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def __call__(self, value: object, path: str, limits: "Limits", /) -> object:
        if type(value) is not dict:
            raise refusal.wrong_type(path, "an object", value)
        tag = value.get(self.tag, self.default)
        check = self.variants.get(tag) if type(tag) is str else None
        if check is None:
            raise self._refusal(tag, f"{path}.{self.tag}")
        return check(value, path, limits)

    def _refusal(self, tag: object, path: str) -> BadRequest:
        if tag is None:
            return refusal.missing(path)
        if type(tag) is not str:
            return refusal.wrong_type(path, "a string", tag)
        if tag in self.refused:
            return refusal.unsupported_value(path, tag, self.refused[tag])
        return refusal.not_one_of(path, tag, tuple(self.variants))

    def __str__(self) -> str:
        return f"object; `{self.tag}` is " + ", ".join(f"`{tag}`" for tag in self.variants)


@dataclass(frozen=True, slots=True)
class Anything:
    """Whatever the body's own caps let through. For fields that go nowhere."""

    def __call__(self, value: object, path: str, limits: "Limits", /) -> object:
        return value

    def __str__(self) -> str:
        return "any value"


@dataclass(frozen=True, slots=True)
class Refused:
    """Not taken, except the values that mean "no"."""

    reason: str
    harmless: tuple[object, ...] = ()

    def __call__(self, value: object, path: str, limits: "Limits", /) -> object:
        if any(type(value) is type(no) and value == no for no in self.harmless):
            return value
        raise refusal.unsupported(path, self.reason)

    def __str__(self) -> str:
        return "only " + ", ".join(f"`{json.dumps(no)}`" for no in self.harmless) if self.harmless else "no value"


@dataclass(frozen=True, slots=True)
class IfAllowed:
    """Taken only where the operator has set ``limits.<flag>``."""

    flag: str
    check: Check

    def __call__(self, value: object, path: str, limits: "Limits", /) -> object:
        if not getattr(limits, self.flag):
            raise refusal.unsupported(path, f"this server does not take it (limits.{self.flag} is off)")
        return self.check(value, path, limits)

    def __str__(self) -> str:
        return f"{described(self.check)}; needs `limits.{self.flag}`"


def described(check: Check) -> str:
    """The check in words, for the reference page: of a function, its docstring's first line."""
    if isinstance(check, FunctionType):
        return (check.__doc__ or "").split("\n")[0].rstrip(".")
    return str(check)


def named(bound: Bound) -> str:
    """A bound for a reader: 4, or ``limits.max_stop``, or 2^63 - 1."""
    if isinstance(bound, str):
        return f"`limits.{bound}`"
    return _POWERS.get(bound, str(bound))


_POWERS = {INT32_MAX: "2^31 - 1", INT64_MAX: "2^63 - 1", INT64_MIN: "-2^63"}
