"""Frozen values as JSON and back."""

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.autoscaler.documents import from_document, to_document


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Leaf:
    number: float
    colour: Colour = Colour.RED


@dataclass(frozen=True, slots=True)
class Tree:
    name: str
    count: int
    is_old: bool
    leaf: Leaf
    maybe: Leaf | None = None
    weight: float | None = None
    leaves: tuple[Leaf, ...] = ()
    by_name: Mapping[str, Leaf] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


WHOLE = Tree("oak", 3, True, Leaf(0.1), Leaf(2.0, Colour.BLUE), 1.5, (Leaf(1.0), Leaf(2.0)), {"a": Leaf(3.0)}, {"b": 4})
BARE = Tree("elm", 0, False, Leaf(1e-300))


def there_and_back(value: Tree) -> Tree:
    return from_document(Tree, json.loads(json.dumps(to_document(value))))


@pytest.mark.parametrize("value", [WHOLE, BARE])
def test_what_was_written_reads_the_same(value: Tree) -> None:
    assert there_and_back(value) == value


_leaves = st.builds(Leaf, st.floats(allow_nan=False), st.sampled_from(Colour))


@given(
    st.builds(
        Tree,
        name=st.text(),
        count=st.integers(),
        is_old=st.booleans(),
        leaf=_leaves,
        maybe=st.none() | _leaves,
        weight=st.none() | st.floats(allow_nan=False),
        leaves=st.lists(_leaves).map(tuple),
        by_name=st.dictionaries(st.text(), _leaves),
        counts=st.dictionaries(st.text(), st.integers()),
    )
)
def test_whatever_was_written_reads_the_same_to_the_last_bit(value: Tree) -> None:
    assert there_and_back(value) == value


def changed(**changes: Any) -> Any:
    return to_document(WHOLE) | changes


@pytest.mark.parametrize(
    "document",
    [
        None,
        7,
        [],
        {},
        {name: value for name, value in changed().items() if name != "count"},
        changed(new=1),
        changed(count="three"),
        changed(count=None),
        changed(leaf=None),
        changed(leaf={"number": 1.0}),
        changed(leaf={"number": 1.0, "colour": "green"}),
        changed(leaves=7),
        changed(leaves=[1]),
        changed(by_name=[]),
        changed(weight="heavy"),
    ],
)
def test_a_document_of_another_shape_is_refused_by_name(document: Any) -> None:
    with pytest.raises(ValueError, match="not a Tree"):
        from_document(Tree, document)
