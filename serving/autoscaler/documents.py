"""Frozen dataclasses as JSON objects and back."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def to_document(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object."""
    return dataclasses.asdict(value)


def from_document(kind: type[T], document: Any) -> T:
    """The dataclass that `to_document` made ``document`` of. Raises ValueError: it is of another version or shape."""
    try:
        return typing.cast(T, _build(kind, document))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a {kind.__name__}: {error!r}") from error


def _build(kind: Any, value: Any) -> Any:
    """``value`` as the annotated type: a dataclass, a tuple, dict or union with None of such, or a plain value."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            raise KeyError(f"fields {sorted(set(value) ^ set(hints))} are unknown or missing")
        return kind(**{name: _build(hints[name], value[name]) for name in hints})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in value)
    if origin in (dict, Mapping):
        return {str(name): _build(arguments[1], item) for name, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        return value if value is None else _build(arguments[0], value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    return kind(value)
