"""How an answer is judged."""

from models.demo.evaluate import Reply, is_right, parse_reply, report, score
from models.demo.exchange import Exchange, Message, assistant, user

CALL: Message = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": "x"}'}}],
}


def test_the_same_text_is_right_and_another_is_not() -> None:
    assert is_right(assistant("85"), Reply("85", [], True))
    assert not is_right(assistant("85"), Reply("86", [], True))


def test_an_answer_that_did_not_stop_is_wrong() -> None:
    assert not is_right(assistant("85"), Reply("85", [], False))


def test_a_call_is_right_when_name_and_arguments_agree_in_any_order() -> None:
    assert is_right(
        CALL, parse_reply('<tool_call>\n{"name": "f", "arguments": {"b": "x", "a": 1}}\n</tool_call>', True)
    )
    assert not is_right(CALL, parse_reply('<tool_call>\n{"name": "f", "arguments": {"b": "x"}}\n</tool_call>', True))
    assert not is_right(CALL, Reply("f", [], True))


def test_a_malformed_call_stays_text() -> None:
    for text in ("<tool_call>{oops</tool_call>", "<tool_call>[]</tool_call>", "<tool_call>{}</tool_call>"):
        assert parse_reply(text, True) == Reply(text, [], True)


def test_the_table_counts_each_task_and_all_of_them() -> None:
    right, wrong = Exchange("a", [user("q"), assistant("1")]), Exchange("b", [user("q"), assistant("2")])
    table = score([right, wrong], [True, False])
    assert table["a"] == {"num_questions": 1, "accuracy": 1.0}
    assert table["overall"] == {"num_questions": 2, "accuracy": 0.5}
    assert "50.0%" in report(table)
