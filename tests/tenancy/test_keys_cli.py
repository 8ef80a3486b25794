import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import OperatorError
from serving.tenancy import keys, keys_cli
from serving.tenancy.keys import NewKey
from serving.tenancy.store import KeyStore

NOW_S = datetime(2027, 1, 15, 8, 0, tzinfo=UTC).timestamp()
DAY_S = 86_400


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with KeyStore.open(tmp_path / "state") as opened:
        yield opened


def test_create_shows_a_key_that_works_and_says_that_it_is_shown_once(store: KeyStore) -> None:
    text = keys_cli.create(store, NewKey("ci", models=("demo",)), rng=os.urandom, now_s=NOW_S)
    shown = keys.parse(text.split("\n\n")[1].strip())
    assert shown is not None
    record = store.look_up(shown.key_id)[1]
    assert record is not None
    assert record.digest == keys.digest(store.pepper, shown.plaintext)
    assert "not shown again" in text


def test_create_as_json_gives_the_key_and_what_it_may_do(store: KeyStore) -> None:
    new = NewKey("ci", tenant="team", models=("demo",), expires_at_s=NOW_S + DAY_S)
    answer = json.loads(keys_cli.create(store, new, rng=os.urandom, now_s=NOW_S, as_json=True))
    assert keys.parse(answer.pop("key")) is not None
    record = store.list_keys()[0]
    assert answer == {
        "id": record.key_id,
        "name": "ci",
        "tenant": "team",
        "last4": record.last4,
        "models": ["demo"],
        "state": "active",
        "created_at": "2027-01-15T08:00:00+00:00",
        "expires_at": "2027-01-16T08:00:00+00:00",
        "revoked_at": None,
        "last_used_at": None,
    }


def test_an_empty_list_says_how_to_create_a_key(store: KeyStore) -> None:
    assert "ballast keys create" in keys_cli.list_keys(store, now_s=NOW_S)
    assert json.loads(keys_cli.list_keys(store, now_s=NOW_S, as_json=True)) == []


def test_the_list_shows_every_key_and_its_state_but_no_secret(store: KeyStore) -> None:
    plaintexts = [
        store.create(new, os.urandom, NOW_S + index)[0].plaintext
        for index, new in enumerate([NewKey("lives"), NewKey("ends", expires_at_s=NOW_S + 5), NewKey("gone")])
    ]
    store.revoke("gone", NOW_S)
    table = keys_cli.list_keys(store, now_s=NOW_S + 10)
    listed = json.loads(keys_cli.list_keys(store, now_s=NOW_S + 10, as_json=True))
    rows = [line.split() for line in table.splitlines()[1:]]
    assert [(row[1], row[5]) for row in rows] == [("lives", "active"), ("ends", "expired"), ("gone", "revoked")]
    assert [key["state"] for key in listed] == ["active", "expired", "revoked"]
    assert not any(text[19:62] in table + json.dumps(listed) for text in plaintexts)


def test_revoke_says_which_key_is_gone(store: KeyStore) -> None:
    one, two = (store.create(NewKey(name), os.urandom, NOW_S)[1] for name in ("one", "two"))
    assert one.key_id in keys_cli.revoke(store, "one", now_s=NOW_S)
    assert json.loads(keys_cli.revoke(store, two.key_id, now_s=NOW_S, as_json=True))["state"] == "revoked"


@pytest.mark.parametrize(
    ("text", "after_s"),
    [
        ("90s", 90),
        ("45m", 45 * 60),
        ("12h", 12 * 3600),
        ("30d", 30 * DAY_S),
        ("8w", 56 * DAY_S),
        ("2027-01-16", 16 * 3600),
        ("2027-01-15T09:00", 3600),
        ("2027-01-15T12:00:00+02:00", 2 * 3600),
        ("2027-01-15T09:00:00Z", 3600),
    ],
)
def test_an_expiry_is_a_duration_or_an_iso_time_in_utc(text: str, after_s: int) -> None:
    assert keys_cli.parse_expiry(text, NOW_S) == NOW_S + after_s


def test_never_is_no_expiry() -> None:
    assert keys_cli.parse_expiry("never", NOW_S) is None


@pytest.mark.parametrize(
    "text", ["", "30", "d", "0d", "-5d", "1.5d", "30 d", "soon", "2027-13-01", "2020-01-01", "999999w", "9999-12-31"]
)
def test_an_expiry_that_is_unclear_past_or_absurd_is_refused(text: str) -> None:
    with pytest.raises(OperatorError):
        keys_cli.parse_expiry(text, NOW_S)


@given(st.text())
def test_no_text_makes_expiry_parsing_fail_in_another_way(text: str) -> None:
    try:
        expires_at_s = keys_cli.parse_expiry(text, NOW_S)
    except OperatorError:
        return
    assert expires_at_s is None or expires_at_s > NOW_S
