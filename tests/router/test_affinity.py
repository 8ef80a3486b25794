"""Which replica has seen the beginning of a prompt."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from serving.router.affinity import Affinity, Home, prefixes


def conversation(num_messages: int, **fields: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"turn {number}"} for number in range(num_messages)]
    return {"model": "demo", "messages": messages, **fields}


def home(known: Affinity, body: dict[str, Any], salt: str = "") -> str | None:
    found = known.home(prefixes(body, salt))
    return found.replica if found else None


def sent(body: dict[str, Any], replica: str = "r0", salt: str = "") -> Affinity:
    known = Affinity()
    known.sent(prefixes(body, salt), replica)
    return known


def test_the_next_turn_of_a_conversation_goes_home() -> None:
    first = conversation(3)
    known = sent(first)
    found = known.home(prefixes(conversation(5), ""))
    assert found == Home("r0", prefixes(first, "")[-1][1])


def test_a_long_conversation_goes_home_too() -> None:
    body = conversation(301)
    found = sent(body).home(prefixes(conversation(303), ""))
    assert found == Home("r0", sum(len(orjson.dumps(message)) for message in body["messages"]))
    assert len(prefixes(conversation(2000), "")) <= 64


def test_conversations_that_begin_alike_share_what_they_share() -> None:
    known = sent(conversation(3))
    known.sent(prefixes(conversation(2) | {"messages": conversation(2)["messages"] + ["other"]}, ""), "r1")
    assert home(known, conversation(5)) == "r0"
    assert home(known, {"messages": [*conversation(2)["messages"], "other", "more"]}) == "r1"


def test_a_system_prompt_and_tools_are_part_of_the_beginning() -> None:
    known = sent(conversation(3, system="be brief", tools=[{"name": "a"}]))
    assert home(known, conversation(3, system="be brief", tools=[{"name": "a"}])) == "r0"
    for other in ({"system": "be long", "tools": [{"name": "a"}]}, {"system": "be brief"}, {"tools": [{"name": "b"}]}):
        assert home(known, conversation(3, **other)) is None


def test_a_system_prompt_is_shared_by_conversations_that_differ_after_it() -> None:
    known = sent({"messages": ["x"], "system": "a long one"})
    assert home(known, {"messages": ["y"], "system": "a long one"}) == "r0"


def test_tenants_share_nothing() -> None:
    known = sent(conversation(3), salt="one")
    assert home(known, conversation(3), salt="one") == "r0"
    assert home(known, conversation(3), salt="other") is None


def test_a_text_is_known_by_its_kilobytes() -> None:
    known = sent({"prompt": "a" * 5000})
    found = known.home(prefixes({"prompt": "a" * 4500 + "b" * 500}, ""))
    assert found == Home("r0", 4096)
    assert home(known, {"prompt": "b" + "a" * 5000}) is None


def test_what_has_no_beginning_that_can_be_told_has_no_home() -> None:
    for body in ({}, {"messages": []}, {"prompt": ""}, {"prompt": [1, 2, 3]}, {"input": "text"}):
        points = prefixes(body, "")
        assert points == []
        known = Affinity()
        known.sent(points, "r0")
        assert known.home(points) is None


def test_the_replica_that_was_sent_it_last_is_its_home() -> None:
    known = sent(conversation(3))
    known.sent(prefixes(conversation(3), ""), "r1")
    assert home(known, conversation(3)) == "r1"


def test_what_was_not_sent_for_longest_is_forgotten_first() -> None:
    known = Affinity(max_prefixes=2)
    for text in ("old", "new", "old", "newest"):
        known.sent(prefixes({"prompt": text}, ""), text)
    assert [home(known, {"prompt": text}) for text in ("old", "new", "newest")] == ["old", None, "newest"]


_messages = st.lists(st.fixed_dictionaries({"content": st.text(max_size=5)}), min_size=1, max_size=80)


@given(messages=_messages, more=_messages)
def test_whatever_a_conversation_says_its_next_turn_goes_home(messages: list[Any], more: list[Any]) -> None:
    known = sent({"messages": messages})
    found = known.home(prefixes({"messages": messages + more[:60]}, ""))
    assert found is not None
    assert found.num_bytes >= prefixes({"messages": messages}, "")[-1][1]
