"""The key store: two private files in the state folder, shared by every gateway and the command line.

    keys.db       SQLite in WAL mode: readers never wait for a writer
    keys.pepper   32 random bytes; without them no stored digest can be checked

Rows are never deleted: a revoked key stays on record, and a store that ever held a key never falls back to open mode.
Every failure is a StateError that says what to do. One handle serves one thread at a time.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from serving.errors import OperatorError, StateError
from serving.tenancy import keys
from serving.tenancy.keys import KeyRecord, MintedKey, NewKey, Rng
from serving.tenancy.private_files import (
    check_private,
    create_private_file,
    ensure_private_folder,
    folder_lock,
    read_private_file,
)

SCHEMA_VERSION = 1
PEPPER_BYTES = 32
LAST_USED_STEP_S = 60
"""``last_used_at_s`` is rounded down to this: enough to find idle keys, too coarse to trace a person."""

_OPEN_BUSY_TIMEOUT_S = 5.0
"""Opening may meet another process's WAL recovery or last close, and must outlast it."""

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE store (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1), schema_version INTEGER NOT NULL, num_changes INTEGER NOT NULL
) STRICT;
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, tenant TEXT NOT NULL, digest BLOB NOT NULL, last4 TEXT NOT NULL,
    models TEXT, created_at_s REAL NOT NULL, expires_at_s REAL, revoked_at_s REAL, last_used_at_s REAL
) STRICT, WITHOUT ROWID;
"""
_RESTORE = "Restore keys.db and keys.pepper together from a backup, or move both away and create new keys."


class StoreVersion(NamedTuple):
    """Equal versions from one handle mean equal content (``last_used_at_s`` aside)."""

    generation: int
    """How often this handle opened the file: a file put in place of ours may have the same ``num_changes``."""
    num_changes: int
    """Keys created and revoked since the store was made."""

    @property
    def ever_held_key(self) -> bool:
        return self.num_changes > 0


class KeyStore:
    """A handle on the key store of one state folder. The constructor touches nothing; ``open`` also creates and checks.

    ``busy_timeout_s`` is how long a call may wait for another process's lock. A gateway passes a few milliseconds,
    because it calls from its event loop.
    """

    def __init__(self, state_dir: Path, busy_timeout_s: float) -> None:
        self._state_dir = state_dir.absolute()
        self._path = self._state_dir / "keys.db"
        self._pepper_path = self._state_dir / "keys.pepper"
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._generation = 0
        self.pepper = b""

    @classmethod
    def open(cls, state_dir: Path, rng: Rng = os.urandom, busy_timeout_s: float = _OPEN_BUSY_TIMEOUT_S) -> Self:
        """Open the store, creating folder, database and pepper on first use.

        Raises StateError when it is damaged, incomplete or open to other users.
        """
        store = cls(state_dir, _OPEN_BUSY_TIMEOUT_S)
        ensure_private_folder(store._state_dir)
        with folder_lock(store._state_dir), store._translated():
            store._create_missing(rng)
        with store._connected() as connection:
            finding = " ".join(_first_row(connection, "PRAGMA quick_check")[0].split())
            connection.execute(f"PRAGMA busy_timeout = {round(busy_timeout_s * 1000)}")
        if finding != "ok":
            store.close()
            raise StateError(f"{store._path} is damaged ({finding[:200]}). {_RESTORE}")
        store._busy_timeout_s = busy_timeout_s
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file. The next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def version(self) -> StoreVersion:
        """Changes when a key is created or revoked, by any process, or the file is replaced."""
        with self._connected() as connection:
            (num_changes,) = _first_row(connection, "SELECT num_changes FROM store")
        return StoreVersion(self._generation, num_changes)

    def look_up(self, key_id: str) -> tuple[StoreVersion, KeyRecord | None]:
        """The key of this id, if any, and the version that the answer belongs to."""
        with self._connected() as connection:
            query = "SELECT num_changes, keys.* FROM store LEFT JOIN keys ON id = ?"
            num_changes, *row = _first_row(connection, query, key_id)
        found = row[0] is not None
        record = _record(row if found else _NO_KEY)  # much the same work, so that time hardly tells which ids exist
        return StoreVersion(self._generation, num_changes), record if found else None

    def list_keys(self) -> tuple[KeyRecord, ...]:
        """Every key ever created, oldest first."""
        with self._connected() as connection:
            rows = connection.execute("SELECT * FROM keys ORDER BY created_at_s, id").fetchall()
        return tuple(map(_record, rows))

    def num_keys(self) -> int:
        """Keys ever created, revoked and expired ones included."""
        with self._connected() as connection:
            (num_keys,) = _first_row(connection, "SELECT count(*) FROM keys")
        return int(num_keys)

    def create(self, new: NewKey, rng: Rng, now_s: float) -> tuple[MintedKey, KeyRecord]:
        """Mint a key and store its record. The plaintext is in the answer only."""
        minted = keys.mint(rng)
        with self._transaction() as connection:  # connects first: a replaced store brings its own pepper
            record = keys.record(new, minted, self.pepper, now_s)
            connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _columns(record))
            connection.execute("UPDATE store SET num_changes = num_changes + 1")
        return minted, record

    def revoke(self, id_or_name: str, now_s: float) -> KeyRecord:
        """Revoke one active or expired key, for good. Durable when this returns.

        Raises OperatorError when nothing, or more than one key, answers to ``id_or_name``.
        """
        with self._transaction() as connection:
            query = "SELECT * FROM keys WHERE (id = ? OR name = ?) AND revoked_at_s IS NULL"
            names = (id_or_name, id_or_name) if id_or_name.isascii() else ("", "")  # every name is ASCII
            found = [_record(row) for row in connection.execute(query, names)]
            if not found:
                raise OperatorError(f"No key that is still valid has the id or name {id_or_name[:80]!r}.")
            if len(found) > 1:
                ids = ", ".join(record.key_id for record in found)
                raise OperatorError(f"{len(found)} keys answer to {id_or_name!r}; revoke one by its id: {ids}.")
            connection.execute("UPDATE keys SET revoked_at_s = ? WHERE id = ?", (now_s, found[0].key_id))
            connection.execute("UPDATE store SET num_changes = num_changes + 1")
        return replace(found[0], revoked_at_s=now_s)

    def touch(self, last_used: Mapping[str, float]) -> None:
        """Note when keys (by id) were last used, to the minute. Does not change the version."""
        rounded = [(at_s - at_s % LAST_USED_STEP_S, key_id) for key_id, at_s in last_used.items()]
        query = "UPDATE keys SET last_used_at_s = ?1 WHERE id = ?2 AND coalesce(last_used_at_s, 0) < ?1"
        with self._transaction() as connection:
            connection.executemany(query, rounded)

    def _create_missing(self, rng: Rng) -> None:
        """Complete the pair of files; the caller holds the folder's lock. The database always comes first, so a pepper
        alone means that a database was lost, and must not be taken for a fresh start."""
        has_database = self._has_tables()
        has_pepper = self._pepper_path.exists()
        if has_pepper and not has_database:
            raise StateError(f"{self._path} is missing or empty, while {self._pepper_path} is there. {_RESTORE}")
        if not has_database:
            if not self._path.exists():
                create_private_file(self._path, b"")
            with closing(self._connect()) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
                connection.execute("INSERT INTO store VALUES (1, ?, 0)", (SCHEMA_VERSION,))
                connection.execute("COMMIT")
        if not has_pepper:
            if has_database:
                self._refuse_lost_pepper()
            create_private_file(self._pepper_path, rng(PEPPER_BYTES))

    def _has_tables(self) -> bool:
        """False also of a file that was begun when the disk was full, or the machine went down."""
        if not self._path.exists() or not self._path.stat().st_size:
            return False
        with closing(self._connect()) as connection:
            (number,) = _first_row(connection, "SELECT count(*) FROM sqlite_master WHERE name = 'store'")
        return bool(number)

    def _refuse_lost_pepper(self) -> None:
        with closing(self._connect()) as connection:
            (num_changes,) = _first_row(connection, "SELECT num_changes FROM store")
        if num_changes:
            raise StateError(f"{self._pepper_path} is missing: no stored key can be checked without it. {_RESTORE}")

    def _connect(self) -> sqlite3.Connection:
        uri = self._path.as_uri() + "?mode=rw"  # never creates: a store that vanishes must not come back empty
        # check_same_thread: Ray Serve may construct a replica in another thread than the one that serves.
        return sqlite3.connect(
            uri, uri=True, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )

    def _reconnect(self, file: tuple[int, int]) -> sqlite3.Connection:
        """Open the files that are there now."""
        self.close()
        self._file = None  # until all the checks have passed
        check_private(self._state_dir)
        check_private(self._path)
        pepper = read_private_file(self._pepper_path)
        if len(pepper) != PEPPER_BYTES:
            raise StateError(f"{self._pepper_path} has {len(pepper)} bytes instead of {PEPPER_BYTES}. {_RESTORE}")
        self._connection = self._connect()
        (found,) = _first_row(self._connection, "SELECT schema_version FROM store")
        if found != SCHEMA_VERSION:
            raise StateError(f"{self._path} has schema {found}, this Ballast knows {SCHEMA_VERSION}; upgrade Ballast.")
        self.pepper, self._file = pepper, file
        self._generation += 1
        return self._connection

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection to the file that has our name now, not to one that was moved away or deleted."""
        with self._translated():
            status = os.stat(self._path)
            file = (status.st_dev, status.st_ino)
            if self._connection is None or file != self._file:
                yield self._reconnect(file)
            else:
                yield self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and alone: other writers wait up to the busy timeout."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:  # commits, or rolls back when an exception passes
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's and the system's errors become StateError; the connection is dropped, as it may be beyond use."""
        try:
            yield
        except sqlite3.Error as error:
            self.close()
            raise StateError(f"{self._path}: {error}. {_advice(error)}") from error
        except OSError as error:
            self.close()
            raise StateError(f"{self._path}: {error.strerror}. {_RESTORE}") from error


def _advice(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "Another process holds it; try again in a moment."
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR")):
        return "Check that the state folder can be written and that its disk is not full."
    return _RESTORE


_NO_KEY = ("", "", "", b"", "", '["-"]', 0.0, None, None, None)


def _first_row(connection: sqlite3.Connection, query: str, *parameters: str) -> Sequence[Any]:
    row: Sequence[Any] | None = connection.execute(query, parameters).fetchone()
    if row is None:
        raise StateError(f"The key store has lost its version row. {_RESTORE}")
    return row


def _record(row: Sequence[Any]) -> KeyRecord:
    """A row of ``keys``, whose columns stand in the order of KeyRecord's fields; STRICT tables guarantee the types."""
    key_id, name, tenant, digest, last4, models, *times = row
    allowed = None if models is None else tuple(json.loads(models))
    return KeyRecord(key_id, name, tenant, digest, last4, allowed, *times)


def _columns(record: KeyRecord) -> tuple[object, ...]:
    key_id, name, tenant, digest, last4, models, *times = astuple(record)
    return key_id, name, tenant, digest, last4, None if models is None else json.dumps(models), *times
