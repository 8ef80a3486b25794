"""What pydantic found, in words for an operator: path, value, reason, and the nearest valid key or value."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from serving.config.problem import FileProblem, Location, dotted, shown

_SECRET_KEY = re.compile(r"(?i)(^|[_-])(api[_-]?key|secret|password|passwd|token|credentials?|pepper)$")

Schema = dict[str, Any]  # JSON Schema, as pydantic writes it


@dataclass(frozen=True)
class KeyMap:
    """Which keys are valid where, read from the JSON Schema."""

    schema: Schema

    def keys(self, node: Schema) -> list[str]:
        """The valid keys of an object."""
        return list(node.get("properties", {}))

    def resolved(self, node: Schema) -> Schema:
        """``node`` with its reference followed; of a nullable section, the section."""
        for option in node.get("anyOf", []):
            if "$ref" in option:
                node = option
        if "$ref" in node:
            node = self.schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return node

    def walk(self, location: Location) -> tuple[Location, Schema]:
        """Follow a pydantic location: the path in the file (without union tags and key marks), and the schema there."""
        path: list[str | int] = []
        node = self.resolved(self.schema)
        for part in location:
            tags = node.get("discriminator", {}).get("mapping", {})
            if part in tags:
                node = self.resolved({"$ref": tags[part]})
            elif part != "[key]":
                path.append(part)
                child = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
                node = self.resolved(child)
        return tuple(path), node

    def homes(self, key: str) -> list[str]:
        """Every place that has ``key``, as a person would write it: ``models[].pools[] (only device: cuda)``."""
        devices: dict[str, set[str]] = {}
        for place, device, keys in self._sections(self.schema, "", ""):
            if key in keys:
                devices.setdefault(place, set()).add(device)
        return [
            place if len(on) > 1 or "" in on else f"{place} (only device: {min(on)})" for place, on in devices.items()
        ]

    def _sections(self, node: Schema, place: str, device: str) -> Iterator[tuple[str, str, list[str]]]:
        node = self.resolved(node)
        for tag, reference in node.get("discriminator", {}).get("mapping", {}).items():
            yield from self._sections({"$ref": reference}, place, tag)
        if "items" in node:
            yield from self._sections(node["items"], f"{place}[]", device)
        if "properties" in node:
            yield place or "the top of the file", device, self.keys(node)
        for key, child in node.get("properties", {}).items():
            yield from self._sections(child, f"{place}.{key}".removeprefix("."), device)


def problems_of(error: ValidationError, keys: KeyMap, lines: Mapping[Location, int]) -> Iterator[FileProblem]:
    """Every error of a validation, in pydantic's order."""
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # the list is short only of the items that are reported themselves
        yield _problem(detail, keys, lines)


def _problem(detail: ErrorDetails, keys: KeyMap, lines: Mapping[Location, int]) -> FileProblem:
    path, node = keys.walk(detail["loc"])
    kind, found = detail["type"], shown(detail["input"])
    reason, suggestion = _plain(detail["msg"]), None
    if kind == "extra_forbidden":
        reason, suggestion = _unknown_key(path, keys)
        found = "(hidden)" if _SECRET_KEY.search(str(path[-1])) else found
    elif kind == "missing":
        reason, found = "is required", ""
    elif kind == "union_tag_not_found":
        path, reason, found = (*path, "device"), "is required: cpu or cuda", ""
    elif kind == "union_tag_invalid":
        path, found = (*path, "device"), shown(detail["ctx"]["tag"])
        reason, suggestion = "must be cpu or cuda", nearest(detail["ctx"]["tag"], ["cpu", "cuda"])
    elif kind == "literal_error":
        suggestion = nearest(str(detail["input"]), [str(option) for option in node.get("enum", [])])
    elif kind == "value_error":
        reason = str(detail["ctx"]["error"])
        found = found if isinstance(detail["input"], str) and detail["loc"][-1] != "[key]" else ""
    return FileProblem(dotted(path), found, reason, suggestion, line=_line(path, lines))


def _plain(message: str) -> str:
    """Pydantic's sentence, in the form `must be ...`."""
    message = re.sub(r"^(Input|String|Value|Tuple|List|Dictionary) should ", "must ", message)
    return re.sub(
        r"a valid (tuple|dictionary.*)$", lambda kind: "a list" if kind[1] == "tuple" else "a mapping", message
    )


def _unknown_key(path: Location, keys: KeyMap) -> tuple[str, str | None]:
    key = str(path[-1])
    if _SECRET_KEY.search(key):
        return "unknown key; and secrets never live in this file", None
    suggestion = nearest(key, keys.keys(keys.walk(path[:-1])[1]))
    homes = keys.homes(key)
    return ("unknown key; it belongs in " + " or ".join(homes), None) if homes else ("unknown key", suggestion)


def nearest(word: str, options: list[str]) -> str | None:
    """The option most like ``word``, or None when none is like it."""
    by_letters = {option.lower(): option for option in options}
    return next((by_letters[match] for match in difflib.get_close_matches(word.lower(), by_letters, n=1)), None)


def _line(path: Location, lines: Mapping[Location, int]) -> int | None:
    """The line of ``path``, or of the nearest section around it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def repeated_names(data: dict[str, JsonValue], lines: Mapping[Location, int]) -> Iterator[FileProblem]:
    """Names that must be unique and are not. Reads the raw data, so that it speaks even when other values are wrong."""
    models = _items(data.get("models"))
    yield from _repeats(
        [
            entry
            for index, model in enumerate(models)
            for entry in (
                (("models", index, "name"), model.get("name")),
                *((("models", index, "aliases", i), alias) for i, alias in enumerate(_list(model.get("aliases")))),
            )
        ],
        lines,
    )
    for index, model in enumerate(models):
        pools = enumerate(_items(model.get("pools")))
        yield from _repeats([(("models", index, "pools", i, "name"), pool.get("name")) for i, pool in pools], lines)


def _repeats(entries: list[tuple[Location, JsonValue]], lines: Mapping[Location, int]) -> Iterator[FileProblem]:
    first: dict[str, Location] = {}
    for location, name in entries:
        if not isinstance(name, str):
            continue
        if name in first:
            reason = f"is already taken by {dotted(first[name])}"
            yield FileProblem(dotted(location), name, reason, line=_line(location, lines))
        else:
            first[name] = location


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _items(value: JsonValue) -> list[dict[str, JsonValue]]:
    """The list's objects; an empty one stands for what is not an object, so that positions hold."""
    return [item if isinstance(item, dict) else {} for item in _list(value)]
