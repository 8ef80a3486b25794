"""JSON schemas from clients: small enough to carry, and, where the engine compiles them, cheap enough to compile.

Compile times measured with xgrammar on one core and a vocabulary of 32,000: depth 128, 0.9 s; an object with 256
optional properties, 0.6 s, with 1000, 10 s (quadratic); 16 strings with ``maxLength`` 1000, 18 s (linear in their sum);
``(a{1,100}){1,100}``, 0.6 s. A recursive schema is a 500 in vLLM 0.29.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from serving.gateway import refusal

if TYPE_CHECKING:
    from serving.config.limits import Limits

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = (
    "items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains",
    "propertyNames", "not", "if", "then", "else",
)  # fmt: skip
_STRING_BOUNDS = ("minLength", "maxLength")
_OTHER_BOUNDS = ("minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_COUNTED = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema. ``is_compiled``: the engine makes a grammar of it, so what compiles slowly or never is refused."""

    is_compiled: bool

    def __call__(self, value: object, path: str, limits: "Limits", /) -> dict[str, object]:
        if type(value) is not dict:
            raise refusal.wrong_type(path, "an object (a JSON schema)", value)
        if (size := len(orjson.dumps(value))) > limits.max_schema_bytes:
            raise refusal.invalid(path, f"the schema has {size} bytes, at most {limits.max_schema_bytes} are taken")
        _Walk(value, path, limits, self.is_compiled).run()
        return value

    def __str__(self) -> str:
        return "JSON schema, bounded in bytes, depth, properties and enum values"


@dataclass(slots=True)
class _Walk:
    """One look at every subschema of ``root``."""

    root: dict[str, object]
    path: str
    limits: "Limits"
    is_compiled: bool
    num_properties: int = 0
    num_enum_values: int = 0
    num_repeats: int = 0
    num_optional_squared: int = 0
    heights: dict[int, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)

    def run(self) -> None:
        self.visit(self.root, self.path, 1)

    def visit(self, node: object, path: str, level: int) -> int:
        """The height of the tree under ``node``, references included. ``max_schema_depth`` bounds the recursion."""
        if node is True or node is False:
            return 1
        if type(node) is not dict:
            self.refuse_if_compiled(path, "expected a JSON schema: an object or a boolean")
            return 1
        height = self.heights.get(id(node), 1)
        if level + height - 1 > self.limits.max_schema_depth:
            raise refusal.invalid(self.path, f"the schema is nested deeper than {self.limits.max_schema_depth} levels")
        if id(node) in self.heights:
            return height
        if id(node) in self.open:
            self.refuse_if_compiled(path, "the schema refers to itself")
            return 1
        self.open.add(id(node))
        self.count(node, path)
        for child, child_path in self.children(node, path):
            height = max(height, 1 + self.visit(child, child_path, level + 1))
        self.open.discard(id(node))
        self.heights[id(node)] = height
        return height

    def children(self, node: dict[str, object], path: str) -> Iterator[tuple[object, str]]:
        for keyword in (name for name in node if name in _CHILD_KEYWORDS):
            value, at = node[keyword], f"{path}.{keyword}"
            if keyword in _MAPS:
                if type(value) is dict:
                    yield from ((child, f"{at}.{name[:64]}") for name, child in value.items())
                else:
                    self.refuse_if_compiled(at, "expected an object of schemas")
            elif type(value) is list and keyword in (*_LISTS, "items"):
                if not value:
                    self.refuse_if_compiled(at, "expected at least one schema")
                yield from ((child, f"{at}[{index}]") for index, child in enumerate(value))
            else:
                yield value, at
        if "$ref" in node:
            yield from self.referred(node["$ref"], f"{path}.$ref")

    def referred(self, reference: object, path: str) -> Iterator[tuple[object, str]]:
        if type(reference) is not str or not (reference == "#" or reference.startswith("#/")):
            raise refusal.invalid(path, "only references inside the schema are taken, like '#/$defs/name'")
        target: object = self.root
        for step in reference.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if type(target) is dict and key in target:
                target = target[key]
            elif type(target) is list and key.isascii() and key.isdigit() and len(key) < 6 and int(key) < len(target):
                target = target[int(key)]
            else:
                self.refuse_if_compiled(path, "it refers to nothing in this schema")
                return
        if self.is_compiled:
            yield target, path

    def count(self, node: dict[str, object], path: str) -> None:
        """Add what ``node`` itself costs and hold it against the caps."""
        limits = self.limits
        properties = node.get("properties")
        if type(properties) is dict:
            self.num_properties += len(properties)
            if self.num_properties > limits.max_schema_properties:
                raise refusal.invalid(self.path, f"the schema has more than {limits.max_schema_properties} properties")
        values = node.get("enum")
        if type(values) is list:
            self.num_enum_values += len(values)
            if self.num_enum_values > limits.max_schema_enum:
                raise refusal.invalid(self.path, f"the schema has more than {limits.max_schema_enum} enum values")
        if self.is_compiled:
            self.count_compiled(node, path)

    def count_compiled(self, node: dict[str, object], path: str) -> None:
        if "enum" in node and not (type(node["enum"]) is list and node["enum"]):
            raise refusal.invalid(f"{path}.enum", "expected an array of at least one value")
        _check_type(node.get("type"), f"{path}.type")
        for keyword in ("$dynamicRef", "$recursiveRef"):
            if keyword in node:
                raise refusal.invalid(f"{path}.{keyword}", "this kind of reference is not taken")
        self.count_repeats(node, path)
        properties, required = node.get("properties"), node.get("required", [])
        if type(required) is not list or not all(type(name) is str for name in required):
            raise refusal.invalid(f"{path}.required", "expected an array of strings")
        if type(properties) is dict:
            self.num_optional_squared += len(properties.keys() - set(required)) ** 2
            # Compile time grows with the square of an object's optional properties: 256 in one, as 64 in each of 16.
            if self.num_optional_squared > self.limits.max_schema_optional**2:
                raise refusal.invalid(self.path, "the schema has too many optional properties; list them in 'required'")

    def count_repeats(self, node: dict[str, object], path: str) -> None:
        most, most_together = self.limits.max_schema_repeat, self.limits.max_schema_repeats
        for keyword in (name for name in node if name in _BOUNDS):
            bound, at = node[keyword], f"{path}.{keyword}"
            if type(bound) is not int or bound < 0:
                raise refusal.invalid(at, "expected a whole number of at least 0")
            if bound > most:
                raise refusal.too_large(at, bound, most)
            self.num_repeats += bound if keyword in _STRING_BOUNDS else 0
        patterns: list[tuple[str, object]] = [("pattern", node["pattern"])] if "pattern" in node else []
        named = node.get("patternProperties")
        patterns += [("patternProperties", pattern) for pattern in named] if type(named) is dict else []
        for keyword, pattern in patterns:
            if not self.limits.allow_regex:
                reason = "this server takes no regular expressions (limits.allow_regex is off)"
                raise refusal.unsupported(f"{path}.{keyword}", reason)
            self.num_repeats += self.pattern_repeats(pattern, f"{path}.{keyword}")
        if self.num_repeats > most_together:
            raise refusal.invalid(self.path, f"the string lengths in the schema add up to more than {most_together}")

    def pattern_repeats(self, pattern: object, path: str) -> int:
        """How often the pattern's counted repetitions may multiply: ``(a{3}){5}`` is 15."""
        if type(pattern) is not str:
            raise refusal.wrong_type(path, "a string", pattern)
        if len(pattern) > self.limits.max_pattern_chars:
            raise refusal.too_long(path, "string", len(pattern), self.limits.max_pattern_chars)
        product = 1
        for low, high in _COUNTED.findall(pattern):
            product *= max(int(low), int(high or 0), 1)
            if product > self.limits.max_schema_repeat:
                raise refusal.invalid(path, f"its repetitions multiply to more than {self.limits.max_schema_repeat}")
        return product if product > 1 else 0

    def refuse_if_compiled(self, path: str, reason: str) -> None:
        if self.is_compiled:
            raise refusal.invalid(path, reason)


_CHILD_KEYWORDS = frozenset((*_MAPS, *_LISTS, *_SINGLES))
_BOUNDS = frozenset((*_STRING_BOUNDS, *_OTHER_BOUNDS))


def _check_type(value: object, path: str) -> None:
    names = value if type(value) is list else [value]
    if value is not None and not (names and all(type(name) is str and name in _TYPES for name in names)):
        raise refusal.invalid(path, "expected one of " + ", ".join(sorted(_TYPES)) + ", or an array of them")
