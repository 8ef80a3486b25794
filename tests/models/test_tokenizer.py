"""The shipped tokenizer: any text survives it, and slot values are spelled out."""

import json

from hypothesis import given
from hypothesis import strategies as st

from models.demo.text import FOLDER, PAD, TURN_END, TURN_START, load_tokenizer, token_id
from models.demo.tokenizer import TOOL_TAGS, build, known_words
from models.demo.words import open_words

TOKENIZER = load_tokenizer()


@given(st.text())
def test_any_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(alphabet=st.sampled_from("a1 \n\"{}[]:,'é日-.T"), max_size=40))
def test_json_like_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_control_tokens_are_single_tokens_and_only_turn_marks_are_skipped() -> None:
    for token in (PAD, TURN_START, TURN_END, *TOOL_TAGS):
        assert TOKENIZER.encode(token).ids == [token_id(TOKENIZER, token)]
    assert TOKENIZER.decode(TOKENIZER.encode(f"{TURN_START}x{TURN_END}").ids) == "x"
    assert TOKENIZER.decode(TOKENIZER.encode("<tool_call>x</tool_call>").ids) == "<tool_call>x</tool_call>"


def test_each_digit_is_one_token() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode("4096").ids] == list("4096")


def test_no_slot_word_is_a_token() -> None:
    assert not open_words() & {word.casefold() for word in known_words(TOKENIZER)}


def test_an_unknown_word_is_spelled_letter_by_letter() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode(" zorvik").ids] == list(" zorvik")


def test_the_shipped_tokenizer_is_what_its_script_builds() -> None:
    assert json.loads(build().to_str()) == json.loads((FOLDER / "tokenizer.json").read_text())
