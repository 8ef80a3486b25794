import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serving.errors import OperatorError, StateError
from serving.tenancy import keys
from serving.tenancy.keys import KeyRecord, NewKey
from serving.tenancy.private_files import create_private_file
from serving.tenancy.store import KeyStore

NOW_S = 1_800_000_000.0
NOBODY = 65534


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(state_dir: Path) -> Iterator[KeyStore]:
    with KeyStore.open(state_dir) as opened:
        yield opened


def create(store: KeyStore, name: str = "team") -> KeyRecord:
    return store.create(NewKey(name), os.urandom, NOW_S)[1]


def test_first_use_creates_folder_database_and_pepper_for_the_owner_only(store: KeyStore, state_dir: Path) -> None:
    create(store)
    assert state_dir.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in state_dir.iterdir()}
    assert {"keys.db", "keys.pepper"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_a_record_survives_a_new_process_unchanged(store: KeyStore, state_dir: Path) -> None:
    new = NewKey("ci", tenant="team", models=("demo", "org/big"), expires_at_s=NOW_S + 60)
    minted, record = store.create(new, os.urandom, NOW_S)
    with KeyStore.open(state_dir) as other:
        assert other.look_up(minted.key_id)[1] == record
        assert other.list_keys() == (record,)
        assert other.pepper == store.pepper


def test_an_unknown_id_has_no_record(store: KeyStore) -> None:
    create(store)
    assert store.look_up("nobodyhs")[1] is None


def test_the_plaintext_of_a_key_is_in_no_file(store: KeyStore, state_dir: Path) -> None:
    minted, _ = store.create(NewKey("team"), os.urandom, NOW_S)
    store.revoke(minted.key_id, NOW_S)
    store.touch({minted.key_id: NOW_S})
    secret = minted.plaintext[19:62].encode()
    written = {path.name: path.read_bytes() for path in state_dir.iterdir()}
    assert any(minted.key_id.encode() in content for content in written.values())
    assert [name for name, content in written.items() if secret in content] == []


def test_creating_and_revoking_change_the_version_that_another_handle_sees(store: KeyStore, state_dir: Path) -> None:
    with KeyStore.open(state_dir) as gateway:
        versions = [gateway.version()]
        record = create(store)
        versions.append(gateway.version())
        store.revoke(record.key_id, NOW_S)
        versions.append(gateway.version())
        assert len(set(versions)) == 3
        assert [version.ever_held_key for version in versions] == [False, True, True]


def test_noting_the_last_use_rounds_to_the_minute_goes_forward_only_and_leaves_the_version(store: KeyStore) -> None:
    record = create(store)
    before = store.version()
    store.touch({record.key_id: NOW_S + 119.0, "nobodyhs": NOW_S})
    store.touch({record.key_id: NOW_S + 1.0})
    after, touched = store.look_up(record.key_id)
    assert touched is not None
    assert touched.last_used_at_s == NOW_S + 60.0
    assert after == before


def test_a_key_is_revoked_by_id_or_by_name_and_stays_on_record(store: KeyStore) -> None:
    by_id, by_name = create(store, "one"), create(store, "two")
    assert store.revoke(by_id.key_id, NOW_S + 1).revoked_at_s == NOW_S + 1
    assert store.revoke("two", NOW_S + 2).key_id == by_name.key_id
    assert [record.revoked_at_s for record in store.list_keys()].count(None) == 0
    assert store.num_keys() == 2


def test_revoking_by_a_name_that_two_keys_share_asks_for_an_id(store: KeyStore) -> None:
    ids = {create(store, "twin").key_id, create(store, "twin").key_id}
    with pytest.raises(OperatorError) as refusal:
        store.revoke("twin", NOW_S)
    assert all(key_id in str(refusal.value) for key_id in ids)
    assert {record.state(NOW_S) for record in store.list_keys()} == {"active"}


def test_revoking_what_is_unknown_or_already_revoked_is_refused_and_changes_nothing(store: KeyStore) -> None:
    record = create(store)
    store.revoke(record.key_id, NOW_S)
    before = store.version()
    for target in (record.key_id, "team", "nobody"):
        with pytest.raises(OperatorError):
            store.revoke(target, NOW_S)
    assert store.version() == before


@pytest.mark.parametrize(
    "text", ["' OR '1'='1", "x'; DROP TABLE keys; --", '" OR 1=1', "%", "_", "\0", "é'", "?1", "\udcff"]
)
def test_hostile_text_is_only_ever_a_parameter(store: KeyStore, text: str) -> None:
    record = create(store)
    with pytest.raises(OperatorError):
        store.revoke(text, NOW_S)
    if text.isprintable():  # what a request can carry this far: a key's id is eight letters and digits
        assert store.look_up(text)[1] is None
        store.touch({text: NOW_S})
    assert store.list_keys() == (record,)


def test_a_failed_create_leaves_nothing_behind(store: KeyStore) -> None:
    zeros = bytes  # a source of randomness that always gives the same id
    store.create(NewKey("first"), zeros, NOW_S)
    before = store.version()
    with pytest.raises(StateError, match="UNIQUE"):
        store.create(NewKey("same-id"), zeros, NOW_S)
    assert store.num_keys() == 1
    assert store.version().num_changes == before.num_changes


def test_two_processes_can_create_the_store_and_its_keys_at_once(state_dir: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from serving.tenancy.keys import NewKey\n"
        "from serving.tenancy.store import KeyStore\n"
        "for index in range(10):\n"
        "    with KeyStore.open(Path(sys.argv[1])) as store: store.create(NewKey(f'k{index}'), os.urandom, 0.0)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(state_dir)]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    with KeyStore.open(state_dir) as store:
        assert store.num_keys() == 30
        assert store.version().num_changes == 30


def test_a_writer_waits_for_another_up_to_the_timeout_then_says_so(store: KeyStore, state_dir: Path) -> None:
    create(store)
    impatient = KeyStore(state_dir, busy_timeout_s=0.0)
    with store._transaction():
        with pytest.raises(StateError, match="Another process holds it"):
            create(impatient)
        assert impatient.num_keys() == 1, "a reader does not wait for a writer"
    impatient.close()


def test_a_database_of_garbage_is_refused_with_a_hint_at_the_backup(state_dir: Path) -> None:
    with KeyStore.open(state_dir) as store:
        create(store)
    (state_dir / "keys.db").write_bytes(b"not a database " * 600)
    with pytest.raises(StateError, match="backup"):
        KeyStore.open(state_dir)


@pytest.mark.parametrize("place", [0, 5], ids=["unreadable page", "page that contradicts itself"])
def test_a_damaged_page_is_found_on_opening(state_dir: Path, place: int) -> None:
    with KeyStore.open(state_dir) as store:
        for index in range(100):
            create(store, f"team-{index}")
    database = state_dir / "keys.db"
    content = bytearray(database.read_bytes())
    content[3 * 4096 + place] ^= 0xFF
    database.write_bytes(content)
    with pytest.raises(StateError, match="backup"):
        KeyStore.open(state_dir)


@pytest.mark.parametrize("loss", ["keys.db", "keys.pepper"])
def test_a_store_that_lost_half_of_itself_is_not_taken_for_a_fresh_one(state_dir: Path, loss: str) -> None:
    with KeyStore.open(state_dir) as store:
        create(store)
    (state_dir / loss).unlink()
    with pytest.raises(StateError, match="backup"):
        KeyStore.open(state_dir)
    assert not (state_dir / loss).exists()


def test_an_emptied_database_is_not_taken_for_a_fresh_one(state_dir: Path) -> None:
    with KeyStore.open(state_dir) as store:
        create(store)
    (state_dir / "keys.db").write_bytes(b"")
    with pytest.raises(StateError, match="missing or empty"):
        KeyStore.open(state_dir)


@pytest.mark.parametrize("left", ["nothing", "empty file", "schema"])
def test_a_creation_that_was_cut_short_is_completed(state_dir: Path, left: str) -> None:
    with KeyStore.open(state_dir) as store:
        pass
    (state_dir / "keys.pepper").unlink()
    if left == "nothing":
        (state_dir / "keys.db").unlink()
    elif left == "empty file":
        (state_dir / "keys.db").write_bytes(b"")
    with KeyStore.open(state_dir) as store:
        create(store)


def test_a_store_whose_making_was_cut_off_is_made(state_dir: Path) -> None:
    """By a full disk: SQLite's own header is there, and no table."""
    state_dir.mkdir(mode=0o700)
    create_private_file(state_dir / "keys.db", b"")
    with closing(sqlite3.connect(state_dir / "keys.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert (state_dir / "keys.db").stat().st_size
    with KeyStore.open(state_dir) as opened:
        create(opened)


def test_a_pepper_of_the_wrong_length_is_refused(store: KeyStore, state_dir: Path) -> None:
    (state_dir / "keys.pepper").write_bytes(b"short")
    with pytest.raises(StateError, match="5 bytes instead of 32"):
        KeyStore.open(state_dir)


@pytest.mark.parametrize("name", ["keys.db", "keys.pepper"])
def test_a_store_file_that_others_can_read_is_refused(store: KeyStore, state_dir: Path, name: str) -> None:
    (state_dir / name).chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        KeyStore.open(state_dir)


def test_a_schema_of_the_future_is_refused(store: KeyStore, state_dir: Path) -> None:
    with store._transaction() as connection:
        connection.execute("UPDATE store SET schema_version = 99")
    with pytest.raises(StateError, match="upgrade Ballast"):
        KeyStore.open(state_dir)


def test_a_database_without_its_version_row_is_refused(store: KeyStore) -> None:
    with store._transaction() as connection:
        connection.execute("DELETE FROM store")
    with pytest.raises(StateError, match="backup"):
        store.version()


def test_an_open_handle_notices_that_the_file_is_gone_and_that_it_is_back(store: KeyStore, state_dir: Path) -> None:
    create(store)
    store.close()
    before = store.version()
    aside = state_dir.with_name("aside")
    state_dir.rename(aside)
    with pytest.raises(StateError, match=r"keys\.db"):
        store.version()
    aside.rename(state_dir)
    assert store.version().num_changes == before.num_changes


def test_an_open_handle_follows_a_store_that_was_put_in_place_of_ours(
    store: KeyStore, state_dir: Path, tmp_path: Path
) -> None:
    """The other store has the same number of changes, so only the generation can tell them apart."""
    create(store, "old")
    before = store.version()
    with KeyStore.open(tmp_path / "other") as other:
        record = create(other, "new")
    shutil.rmtree(state_dir)
    (tmp_path / "other").rename(state_dir)
    assert store.version() != before
    assert store.version().num_changes == before.num_changes
    assert store.look_up(record.key_id)[1] == record
    assert store.pepper == (state_dir / "keys.pepper").read_bytes()


@pytest.fixture
def as_ordinary_user() -> Iterator[Path]:
    """A folder of a user whom permissions bind: root may write to a read-only folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        user = os.geteuid()
        if user == 0:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(user)


def test_a_read_only_folder_is_an_error_in_plain_words_and_open_handles_go_on_reading(as_ordinary_user: Path) -> None:
    state_dir = as_ordinary_user / "state"
    with KeyStore.open(state_dir) as store:
        record = create(store)
        state_dir.chmod(0o500)
        (state_dir / "keys.db").chmod(0o400)
        try:
            assert store.look_up(record.key_id)[1] == record
            with pytest.raises(StateError, match=r"keys\."):
                create(KeyStore(state_dir, busy_timeout_s=0.0))
            with pytest.raises(StateError):
                KeyStore.open(state_dir / "deeper")
        finally:
            state_dir.chmod(0o700)


def test_a_write_that_a_kill_cut_short_is_undone(store: KeyStore, state_dir: Path) -> None:
    record = create(store)
    script = (
        "import os, sys; from pathlib import Path; from serving.tenancy.store import KeyStore\n"
        "with KeyStore.open(Path(sys.argv[1]))._transaction() as connection:\n"
        "    connection.execute('DELETE FROM keys')\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(state_dir)], check=False).returncode == 9
    with KeyStore.open(state_dir) as other:
        assert other.list_keys() == (record,)


def test_the_database_holds_digests_not_keys(store: KeyStore, state_dir: Path) -> None:
    minted, _ = store.create(NewKey("team"), os.urandom, NOW_S)
    connection = sqlite3.connect(state_dir / "keys.db")
    assert connection.execute("SELECT digest FROM keys").fetchone() == (keys.digest(store.pepper, minted.plaintext),)
    connection.close()
