"""YAML text as plain data, and the line of every value.

The reading is YAML 1.2's core schema: ``on`` and ``no`` are words, ``1:30`` and a date are text. Aliases and tags are
refused on purpose: a value then stands where it applies, and no file grows without bound when read.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml
from pydantic import JsonValue

from serving.config.problem import FileProblem, Location, config_error, dotted

MAX_DEPTH = 32
_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")


@dataclass(frozen=True)
class Document:
    """A read file: its data, the line (from 1) of each location, and the problems that did not stop the reading."""

    data: dict[str, JsonValue]
    lines: Mapping[Location, int]
    problems: tuple[FileProblem, ...]


def read_document(text: str, origin: str) -> Document:
    """Read YAML ``text``, called ``origin`` in messages.

    Raises ConfigError when the text is not YAML (with line and column), is empty, or is not a mapping.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise config_error(origin, [_unreadable(error.problem or "not YAML", mark)]) from error
    except yaml.YAMLError as error:
        raise config_error(origin, [_unreadable(" ".join(str(error).split()), None)]) from error
    except (ValueError, OverflowError) as error:  # an escape like "\UFFFFFFFF", which PyYAML hands to chr() unchecked
        raise config_error(origin, [_unreadable(f"a character that does not exist: {error}", None)]) from error
    if root is None:
        raise config_error(origin, [FileProblem("", "", "the file is empty")])
    if not isinstance(root, yaml.MappingNode):
        reason = "must be a mapping of `key: value` lines at its top"
        raise config_error(origin, [FileProblem("", "", reason, line=_line(root))])
    reading = _Reading()
    data = reading.mapping(root, ())
    return Document(data, reading.lines, tuple(reading.problems))


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with a bound on depth and without aliases."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise self._refused("aliases are not supported; write the value out")
        if self.depth > MAX_DEPTH:
            raise self._refused(f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: dict[str, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise yaml.MarkedYAMLError(problem="half a surrogate pair", problem_mark=node.start_mark)
        return node

    def _refused(self, reason: str) -> yaml.MarkedYAMLError:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        assert isinstance(mark, yaml.Mark)
        return yaml.MarkedYAMLError(problem=reason, problem_mark=mark)


_Loader.yaml_implicit_resolvers = {}


@dataclass
class _Reading:
    """Nodes to data, noting lines and problems on the way."""

    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[FileProblem] = field(default_factory=list)

    def value(self, node: yaml.Node, location: Location) -> JsonValue:
        self.lines.setdefault(location, _line(node))
        match node:
            case yaml.MappingNode():
                return self.mapping(node, location)
            case yaml.SequenceNode():
                self._expect_tag(node, "seq", location)
                return [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        self._expect_tag(node, "str", location)
        return _scalar(node)

    def mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, JsonValue]:
        self._expect_tag(node, "map", location)
        data: dict[str, JsonValue] = {}
        for key, key_node, value_node in self._entries(node, location):
            entry = (*location, key)
            if key in data:
                reason = f"appears twice; first on line {self.lines[entry]}"
                self.problems.append(FileProblem(dotted(entry), "", reason, line=_line(key_node)))
                continue
            self.lines[entry] = _line(key_node)
            data[key] = self.value(value_node, entry)
        return data

    def _entries(self, node: yaml.MappingNode, location: Location) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                yield key_node.value, key_node, value_node
            else:
                self.problems.append(FileProblem(dotted(location), "", "a key must be a word", line=_line(key_node)))

    def _expect_tag(self, node: yaml.Node, kind: str, location: Location) -> None:
        if node.tag != _TAG + kind:
            reason = "tags are not supported; leave it out"
            self.problems.append(FileProblem(dotted(location), node.tag.replace(_TAG, "!!"), reason, line=_line(node)))


def _scalar(node: yaml.ScalarNode) -> JsonValue:
    """A plain scalar by the core schema; a quoted one is text. A number too large for either type stays text."""
    text: str = node.value
    if node.style is not None:
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _unreadable(reason: str, mark: yaml.Mark | None) -> FileProblem:
    column = f" (column {mark.column + 1})" if mark else ""
    return FileProblem("", "", f"not valid YAML: {reason}{column}", line=mark.line + 1 if mark else None)
