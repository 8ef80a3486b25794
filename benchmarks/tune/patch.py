"""The user's config with the winner's values: edited as text, so that comments and order stay, and read again to see
that nothing else has changed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml
from pydantic import JsonValue

from benchmarks.load.mistake import BenchError
from serving.config.document import read_document
from serving.errors import ConfigError

Changes = Mapping[tuple[str, ...], JsonValue]
"""New values by their keys from the pool down."""


@dataclass(frozen=True, slots=True)
class _Edit:
    begin: int
    end: int
    text: str


def patched(text: str, model: str, pool: str, changes: Changes, evidence: Sequence[str]) -> str:
    """``text`` with ``changes`` in one pool, and ``evidence`` as comments above it.

    Raises BenchError where the file is written in a way that this cannot edit.
    """
    for path, value in changes.items():
        text = _with_value(text, model, pool, path, value)
    return _with_comments(text, _pool_node(text, model, pool), evidence)


def _with_value(text: str, model: str, pool: str, path: tuple[str, ...], value: JsonValue) -> str:
    node = _pool_node(text, model, pool)
    for depth, key in enumerate(path):
        found = _entry(node, key)
        if found is None:
            edit = _insertion(text, node, key, _nested(path[depth + 1 :], value))
            break
        if depth < len(path) - 1 and isinstance(found, yaml.MappingNode):
            node = found
            continue
        edit = _replacement(text, found, _nested(path[depth + 1 :], value))
        break
    made = text[: edit.begin] + edit.text + text[edit.end :]
    if _data(made) != _expected(_data(text), model, pool, path, value):
        raise BenchError(f"the config cannot be edited at {'.'.join(path)}; set it to {_flow(value)} by hand")
    return made


def _nested(path: tuple[str, ...], value: JsonValue) -> JsonValue:
    for key in reversed(path):
        value = {key: value}
    return value


def _flow(value: JsonValue) -> str:
    """On one line."""
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**20)
    return dumped.removesuffix("...\n").strip()


def _replacement(text: str, node: yaml.Node, value: JsonValue) -> _Edit:
    """In place of a value. A block (a mapping over several lines) ends where its last line's text does."""
    begin, end = _index(node.start_mark), _index(node.end_mark)
    end = begin + len(text[begin:end].rstrip())
    return _Edit(begin, end, (" " if begin == end and text[begin - 1 : begin] == ":" else "") + _flow(value))


def _insertion(text: str, node: yaml.MappingNode, key: str, value: JsonValue) -> _Edit:
    """A new entry: after ``{`` in a flow mapping; in a block, on a line of its own after the last one-line entry, or
    before the first."""
    entry = f"{key}: {_flow(value)}"
    if node.flow_style:
        begin = _index(node.start_mark) + 1
        return _Edit(begin, begin, entry + (", " if node.value else ""))
    indent = " " * _column(node.value[0][0].start_mark)
    one_line = [
        each
        for name, each in node.value
        if each.end_mark.line == name.start_mark.line and each.start_mark != each.end_mark
    ]
    if one_line:
        begin = _end_of_line(text, _index(one_line[-1].end_mark))
        return _Edit(begin, begin, f"\n{indent}{entry}")
    begin = _index(node.value[0][0].start_mark)
    return _Edit(begin, begin, f"{entry}\n{indent}")


def _end_of_line(text: str, index: int) -> int:
    found = text.find("\n", index)
    return len(text) if found < 0 else found


def _with_comments(text: str, node: yaml.MappingNode, lines: Sequence[str]) -> str:
    """Above the pool, or at the top of the file where the pool has no line of its own."""
    begin = text.rfind("\n", 0, _index(node.start_mark)) + 1
    before = text[begin : _index(node.start_mark)]
    indent = before[: len(before) - len(before.lstrip())] if before.strip() == "-" else None
    place = begin if indent is not None else 0
    comment = "".join(f"{indent or ''}# {line}\n" for line in lines)
    made = text[:place] + comment + text[place:]
    assert _data(made) == _data(text), "a comment changes nothing"
    return made


def _pool_node(text: str, model: str, pool: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.BaseLoader)
    assert isinstance(root, yaml.MappingNode), "the config was read before"
    return _named(_named(root, "models", model), "pools", pool)


def _named(node: yaml.MappingNode, section: str, name: str) -> yaml.MappingNode:
    entries = _entry(node, section)
    assert isinstance(entries, yaml.SequenceNode), f"{section} was read before"
    for each in entries.value:
        called = _entry(each, "name")
        if isinstance(called, yaml.ScalarNode) and called.value == name:
            assert isinstance(each, yaml.MappingNode)
            return each
    raise AssertionError(f"no {name} in {section}, which was read before")


def _entry(node: yaml.Node, key: str) -> yaml.Node | None:
    assert isinstance(node, yaml.MappingNode)
    return next((value for name, value in node.value if name.value == key), None)


def _index(mark: yaml.Mark | None) -> int:
    assert mark is not None
    return int(mark.index)


def _column(mark: yaml.Mark | None) -> int:
    assert mark is not None
    return int(mark.column)


def _data(text: str) -> dict[str, JsonValue] | None:
    """None where it cannot be read any more."""
    try:
        return read_document(text, "config").data
    except ConfigError:
        return None


def _expected(
    data: dict[str, JsonValue] | None, model: str, pool: str, path: tuple[str, ...], value: JsonValue
) -> JsonValue:
    copy = json.loads(json.dumps(data))
    [found_model] = [each for each in copy["models"] if each["name"] == model]
    [section] = [each for each in found_model["pools"] if each["name"] == pool]
    for key in path[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section[path[-1]] = value
    found: JsonValue = copy
    return found
