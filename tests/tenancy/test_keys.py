import hmac
import os
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import OperatorError
from serving.tenancy import keys
from serving.tenancy.keys import KeyRecord, NewKey

KEY_FORM = re.compile(r"blst_live_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}_[0-9a-f]{8}")
RECORD = KeyRecord("abcdefgh", "team", "team", b"d" * 32, "wxyz", None, created_at_s=0.0)
random_bytes = st.binary(min_size=40, max_size=40)


def scripted(content: bytes) -> keys.Rng:
    """A source of randomness that gives ``content`` in order."""
    left = bytearray(content)

    def take(num_bytes: int) -> bytes:
        taken = bytes(left[:num_bytes])
        del left[:num_bytes]
        return taken

    return take


@given(random_bytes)
def test_every_minted_key_has_the_form_and_parses_to_its_id(content: bytes) -> None:
    minted = keys.mint(scripted(content))
    assert KEY_FORM.fullmatch(minted.plaintext)
    assert len(minted.plaintext) == keys.KEY_LENGTH
    parsed = keys.parse(minted.plaintext)
    assert parsed is not None
    assert (parsed.key_id, parsed.plaintext) == (minted.key_id, minted.plaintext)


@given(random_bytes, random_bytes)
def test_all_256_random_bits_reach_the_secret(left: bytes, right: bytes) -> None:
    same_secret = left[8:] == right[8:]
    secrets = {keys.mint(scripted(content)).plaintext[19:62] for content in (left, right)}
    assert (len(secrets) == 1) == same_secret


@given(random_bytes, st.integers(0, keys.KEY_LENGTH - 1), st.characters())
def test_a_key_with_one_wrong_character_is_refused_without_a_look_up(content: bytes, place: int, wrong: str) -> None:
    text = keys.mint(scripted(content)).plaintext
    damaged = text[:place] + wrong + text[place + 1 :]
    assert (keys.parse(damaged) is None) == (damaged != text)


@given(st.text())
def test_text_that_is_no_key_parses_to_none(text: str) -> None:
    assert keys.parse(text) is None


@pytest.mark.parametrize("change", ["{}\n", "\n{}", "{} ", " {}", "{}\0", "{0}{0}"])
def test_nothing_may_stand_before_or_after_a_key(change: str) -> None:
    assert keys.parse(change.format(keys.mint(os.urandom).plaintext)) is None


def test_digits_of_other_scripts_are_no_digits() -> None:
    text = keys.mint(scripted(bytes(40))).plaintext
    assert keys.parse(text.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}")) is None


@given(random_bytes, st.binary(min_size=32, max_size=32))
def test_the_digest_is_hmac_sha256_of_the_whole_key(content: bytes, pepper: bytes) -> None:
    text = keys.mint(scripted(content)).plaintext
    assert keys.digest(pepper, text) == hmac.new(pepper, text.encode(), "sha256").digest()


def test_another_pepper_gives_another_digest() -> None:
    text = keys.mint(os.urandom).plaintext
    assert keys.digest(b"a" * 32, text) != keys.digest(b"b" * 32, text)


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare_digest(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(keys.hmac, "compare_digest", compare_digest)  # type: ignore[attr-defined]
    assert keys.same_digest(b"x", b"x")
    assert not keys.same_digest(b"x", b"y")
    assert compared == [(b"x", b"x"), (b"x", b"y")]


def test_a_derived_secret_depends_on_pepper_and_label_and_is_never_a_keys_digest() -> None:
    derived = {keys.derive_secret(pepper, label) for pepper in (b"a" * 32, b"b" * 32) for label in ("salt", "cookie")}
    assert len(derived) == 4
    with pytest.raises(AssertionError):
        keys.derive_secret(b"a" * 32, keys.mint(os.urandom).plaintext)


def test_plaintext_and_digest_do_not_show_in_a_repr() -> None:
    minted = keys.mint(os.urandom)
    record = keys.record(NewKey("team"), minted, b"p" * 32, now_s=0.0)
    shown = f"{minted!r} {keys.parse(minted.plaintext)!r} {record!r}"
    assert minted.plaintext not in shown
    assert repr(record.digest) not in shown


def test_a_record_holds_what_was_asked_for_and_the_digest() -> None:
    minted = keys.mint(os.urandom)
    new = NewKey("ci", tenant="team-a", models=("demo", "org/big:v2"), expires_at_s=9.0)
    record = keys.record(new, minted, b"p" * 32, now_s=5.0)
    assert record == KeyRecord(
        minted.key_id,
        "ci",
        "team-a",
        keys.digest(b"p" * 32, minted.plaintext),
        minted.plaintext[-4:],
        ("demo", "org/big:v2"),
        created_at_s=5.0,
        expires_at_s=9.0,
    )


def test_the_tenant_is_the_name_unless_it_is_given() -> None:
    assert NewKey("ci").tenant == "ci"


@pytest.mark.parametrize(
    "bad",
    [
        {"name": ""},
        {"name": "two words"},
        {"name": "x" * 65},
        {"name": "-option"},
        {"name": "line\nbreak"},
        {"name": "\x1b[31mred"},
        {"name": "anonymous"},
        {"name": "ci", "tenant": "a'; DROP TABLE keys; --"},
        {"name": "ci", "tenant": "anonymous"},
        {"name": "ci", "models": ()},
        {"name": "ci", "models": ("demo", "")},
        {"name": "ci", "models": ("de mo",)},
    ],
)
def test_names_that_could_not_be_shown_or_told_apart_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(OperatorError):
        NewKey(**bad)  # type: ignore[arg-type]


def test_a_key_is_active_until_the_second_it_expires_and_revoked_wins() -> None:
    assert RECORD.state(1e12) == "active"
    expiring = replace(RECORD, expires_at_s=100.0)
    assert [expiring.state(now_s) for now_s in (99.9, 100.0)] == ["active", "expired"]
    assert replace(expiring, revoked_at_s=1.0).state(0.0) == "revoked"
