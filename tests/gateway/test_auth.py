import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.clock import ManualClock
from serving.errors import ConfigError, ModelNotAllowed, Overloaded, StateError, Unauthenticated
from serving.gateway import auth
from serving.gateway.auth import Authenticator, Identity, check_bind, check_model
from serving.tenancy import keys
from serving.tenancy.keys import KeyRecord, NewKey
from serving.tenancy.store import KeyStore

Headers = list[tuple[bytes, bytes]]


class Bench:
    """A gateway's authenticator and, through a handle of its own, the command line beside it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.clock = ManualClock()
        self.admin = KeyStore.open(state_dir)
        self.store = KeyStore.open(state_dir, busy_timeout_s=auth.STORE_BUSY_TIMEOUT_S)
        self.gateway = Authenticator(self.store, self.clock.now_s())

    def create(self, name: str = "team", models: tuple[str, ...] | None = None, life_s: float | None = None) -> str:
        """A new key's plaintext, once the gateway knows that the store has changed."""
        now_s = self.clock.now_s()
        new = NewKey(name, models=models, expires_at_s=None if life_s is None else now_s + life_s)
        plaintext = self.admin.create(new, os.urandom, now_s)[0].plaintext
        self.gateway.refresh(now_s)
        return plaintext

    def call(self, key: str) -> Identity:
        return self.call_with([(b"host", b"x"), (b"authorization", f"Bearer {key}".encode())])

    def call_with(self, headers: Headers) -> Identity:
        return self.gateway.authenticate(headers, self.clock.now_s())

    def let_pass(self, seconds: float) -> None:
        """Time passes as in a gateway: with a refresh every half second."""
        for _ in range(round(seconds / auth.REFRESH_S)):
            self.clock.advance(auth.REFRESH_S)
            self.gateway.refresh(self.clock.now_s())

    def lose_store(self) -> None:
        (self.state_dir / "keys.db").rename(self.state_dir / "aside")

    def restore_store(self) -> None:
        (self.state_dir / "aside").rename(self.state_dir / "keys.db")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "state")
    yield made
    made.store.close()
    made.admin.close()


def made_up_key() -> str:
    return keys.mint(os.urandom).plaintext


def no_look_up(key_id: str) -> None:
    raise AssertionError(f"{key_id} was looked up")


# -- credentials ------------------------------------------------------------------------------------------------------


def test_a_key_is_taken_as_bearer_or_as_x_api_key_or_as_both(bench: Bench) -> None:
    key = bench.create("team", models=("demo",)).encode()
    expected = Identity(key[10:18].decode(), "team", "team", ("demo",))
    bearer, x_api_key = (b"authorization", b"Bearer " + key), (b"x-api-key", key)
    for headers in (
        [bearer],
        [x_api_key],
        [bearer, x_api_key],
        [bearer, bearer],
        [(b"authorization", b"bEARER  " + key)],
    ):
        assert bench.call_with(headers) == expected


def test_two_different_keys_are_refused_even_when_both_are_valid(bench: Bench) -> None:
    one, two = bench.create("one").encode(), bench.create("two").encode()
    for second in (two, b"", made_up_key().encode()):
        with pytest.raises(Unauthenticated, match="different keys"):
            bench.call_with([(b"authorization", b"Bearer " + one), (b"x-api-key", second)])


def test_a_request_without_a_key_is_told_how_to_send_one(bench: Bench) -> None:
    bench.create()
    with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
        bench.call_with([(b"host", b"x")])


@pytest.mark.parametrize("value", [b"", b"Bearer", b"Basic dXNlcjpwYXNz", b"Token x", b"Bearer\tx"])
def test_another_scheme_than_bearer_is_refused_and_named(bench: Bench, value: bytes) -> None:
    key = bench.create().encode()
    with pytest.raises(Unauthenticated, match="Bearer <key>"):
        bench.call_with([(b"x-api-key", key), (b"authorization", value)])


HOSTILE = [
    b"",
    b" ",
    b"null",
    b"' OR '1'='1",
    b"' UNION SELECT digest FROM keys --",
    b"x'; DROP TABLE keys; --",
    b'" OR ""="',
    b"1) OR (1=1",
    b"%",
    b"key\r\nx-admin: 1",
    b"key\x00key",
    b"\xff\xfe\x80",
    "ключ".encode(),
    b"A" * 65_536,
    b"blst_live_" + b"0" * 61,
    b"blst_live_' OR 1=_" + b"0" * 43 + b"_00000000",
]


@pytest.mark.parametrize("junk", HOSTILE)
def test_junk_is_401_in_every_header_without_a_look_up_and_is_never_quoted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    bench.create()
    monkeypatch.setattr(bench.store, "look_up", no_look_up)
    for headers in ([(b"authorization", b"Bearer " + junk)], [(b"x-api-key", junk)], [(b"authorization", junk)]):
        with pytest.raises(Unauthenticated) as refusal:
            bench.call_with(headers)
        assert len(junk) < 5 or junk.decode("latin-1") not in refusal.value.message


@pytest.fixture(scope="module")
def keyed_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authenticator]:
    with KeyStore.open(tmp_path_factory.mktemp("auth") / "state") as store:
        store.create(NewKey("team"), os.urandom, 0.0)
        yield Authenticator(store, 0.0)


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"host"]), st.binary()), max_size=4))
def test_no_bytes_in_the_headers_do_anything_but_401(keyed_gateway: Authenticator, headers: Headers) -> None:
    for prefix in (b"", b"Bearer "):
        with pytest.raises(Unauthenticated):
            keyed_gateway.authenticate([(name, prefix + value) for name, value in headers], 0.0)


def test_every_wrong_key_gets_the_same_answer_after_one_constant_time_compare(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an id exists must not show, in the answer or in the work done for it."""
    good = bench.create()
    body = good[:18] + made_up_key()[18:62]
    known_id = f"{body}_{keys._checksum(body)}"
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(keys.hmac, "compare_digest", compare_digest)  # type: ignore[attr-defined]
    messages = set()
    for wrong in (known_id, made_up_key()):
        with pytest.raises(Unauthenticated) as refusal:
            bench.call(wrong)
        messages.add(refusal.value.message)
    assert len(messages) == 1
    assert [len(stored) for _, stored in compared] == [32, 32]


# -- the cache --------------------------------------------------------------------------------------------------------


def test_a_key_that_was_checked_costs_no_look_up_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    key = bench.create()
    first = bench.call(key)
    monkeypatch.setattr(bench.store, "look_up", no_look_up)
    for _ in range(10):
        bench.let_pass(10.0)
        assert bench.call(key) is first


def test_a_key_that_shares_all_but_its_last_secret_digit_with_a_checked_one_is_refused(bench: Bench) -> None:
    """LiteLLM's cache was keyed on the first 20 characters of a token (CVE-2026-35030)."""
    key = bench.create()
    bench.call(key)
    body = key[:61] + ("0" if key[61] != "0" else "1")
    neighbour = f"{body}_{keys._checksum(body)}"
    with pytest.raises(Unauthenticated):
        bench.call(neighbour)
    assert bench.call(key).name == "team"


def test_a_refused_key_is_remembered_and_the_memory_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_REJECTED", 3)
    bench.create()
    wrong = [made_up_key() for _ in range(4)]
    for key in wrong:
        with pytest.raises(Unauthenticated):
            bench.call(key)
    assert len(bench.gateway._rejected) == 3
    monkeypatch.setattr(bench.store, "look_up", no_look_up)
    for key in wrong[1:]:
        with pytest.raises(Unauthenticated):
            bench.call(key)
    with pytest.raises(AssertionError):
        bench.call(wrong[0])


def test_a_key_that_was_refused_before_it_was_created_is_taken_after(bench: Bench) -> None:
    bench.create("first")
    with pytest.raises(Unauthenticated):
        bench.call(keys.mint(bytes).plaintext)
    bench.admin.create(NewKey("late"), bytes, bench.clock.now_s())
    bench.let_pass(0.5)
    assert bench.call(keys.mint(bytes).plaintext).name == "late"


def test_without_refreshes_a_checked_key_is_looked_up_again_after_the_ttl(bench: Bench) -> None:
    key = bench.create()
    bench.call(key)
    bench.admin.revoke("team", bench.clock.now_s())
    bench.clock.advance(auth.TTL_S)
    assert bench.call(key).name == "team"
    bench.clock.advance(0.001)
    with pytest.raises(Unauthenticated, match="revoked"):
        bench.call(key)


def test_a_wall_clock_that_is_set_back_does_not_lengthen_the_ttl(bench: Bench) -> None:
    key = bench.create()
    bench.call(key)
    bench.lose_store()
    bench.clock.set_wall(bench.clock.now_s() - 3600)
    with pytest.raises(Overloaded):
        bench.call(key)


# -- expiry and revocation --------------------------------------------------------------------------------------------


def test_a_key_is_refused_from_the_second_it_expires_though_it_was_checked_before(bench: Bench) -> None:
    key = bench.create(life_s=60.0)
    bench.let_pass(59.5)
    assert bench.call(key).name == "team"
    bench.let_pass(0.5)
    with pytest.raises(Unauthenticated, match="expired"):
        bench.call(key)


def test_a_key_revoked_by_another_process_is_refused_within_a_second(bench: Bench) -> None:
    key, neighbour = bench.create("goes"), bench.create("stays")
    bench.call(key)
    bench.call(neighbour)
    script = (
        "import sys; from pathlib import Path; from serving.tenancy.store import KeyStore\n"
        "with KeyStore.open(Path(sys.argv[1])) as store: store.revoke('goes', 0.0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(bench.state_dir)], check=True, timeout=60)
    bench.let_pass(1.0)
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="revoked"):
            bench.call(key)
    assert bench.call(neighbour).name == "stays"


# -- open mode --------------------------------------------------------------------------------------------------------


def test_a_store_that_never_held_a_key_lets_everyone_in_whatever_they_send(bench: Bench) -> None:
    assert not bench.gateway.key_required
    for headers in ([], [(b"authorization", b"Bearer EMPTY")], [(b"x-api-key", b"\xff")]):
        assert bench.call_with(headers) is Identity.anonymous()


def test_a_key_created_while_running_is_required_within_a_second(bench: Bench) -> None:
    bench.call_with([])
    bench.admin.create(NewKey("first"), os.urandom, bench.clock.now_s())
    bench.let_pass(1.0)
    with pytest.raises(Unauthenticated):
        bench.call_with([])


def test_revoking_the_last_key_does_not_open_the_server_nor_does_a_restart(bench: Bench) -> None:
    bench.create()
    bench.admin.revoke("team", bench.clock.now_s())
    bench.let_pass(1.0)
    for gateway in (bench.gateway, Authenticator(bench.store, bench.clock.now_s())):
        with pytest.raises(Unauthenticated):
            gateway.authenticate([], bench.clock.now_s())


def test_an_empty_store_put_in_place_of_ours_does_not_open_a_running_server(bench: Bench, tmp_path: Path) -> None:
    bench.create()
    KeyStore.open(tmp_path / "empty").close()
    for name in ("keys.db", "keys.pepper"):
        (tmp_path / "empty" / name).replace(bench.state_dir / name)
    bench.let_pass(1.0)
    with pytest.raises(Unauthenticated):
        bench.call_with([])


def test_an_open_server_whose_store_is_lost_closes_after_the_ttl(bench: Bench) -> None:
    bench.lose_store()
    bench.let_pass(auth.TTL_S)
    assert bench.call_with([]) is Identity.anonymous()
    bench.let_pass(0.5)
    with pytest.raises(Overloaded):
        bench.call_with([])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_without_keys_loopback_may_be_bound(host: str) -> None:
    check_bind(host, num_keys=0)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.4", "example.org", "localhost.evil.org", "127.0.0.1.evil.org"]
)
def test_without_keys_any_other_address_is_refused_with_the_command_that_helps(host: str) -> None:
    with pytest.raises(ConfigError, match="ballast keys create"):
        check_bind(host, num_keys=0)
    check_bind(host, num_keys=1)


# -- a store that cannot be read --------------------------------------------------------------------------------------


def spoil(bench: Bench, fault: str) -> sqlite3.Connection | None:
    """Make the store unreadable; a connection that is returned holds the fault until it is closed."""
    database = bench.state_dir / "keys.db"
    if fault == "missing":
        bench.lose_store()
    elif fault == "corrupt":
        bench.lose_store()
        database.write_bytes(b"garbage " * 1024)
        database.chmod(0o600)
    elif fault == "open to others":
        bench.store.close()
        database.chmod(0o666)
    else:
        bench.store.close()
        bench.admin.close()
        locker = sqlite3.connect(database, isolation_level=None)
        locker.execute("PRAGMA locking_mode = EXCLUSIVE")
        locker.execute("BEGIN EXCLUSIVE")
        return locker
    return None


@pytest.mark.parametrize("fault", ["missing", "corrupt", "open to others", "locked"])
def test_while_the_store_is_unreadable_checked_keys_work_for_the_ttl_and_others_get_503(
    bench: Bench, fault: str
) -> None:
    checked, unchecked = bench.create("checked"), bench.create("unchecked")
    bench.call(checked)
    held = spoil(bench, fault)
    for _ in range(2):
        with pytest.raises(Overloaded) as refusal:
            bench.call(unchecked)
        assert (refusal.value.answer.status, refusal.value.code) == (503, "key_store_unavailable")
        assert refusal.value.retry_after_s is not None
    assert isinstance(bench.gateway.store_error, StateError)
    bench.let_pass(auth.TTL_S)
    assert bench.call(checked).name == "checked"
    bench.let_pass(0.5)
    for key in (checked, unchecked):
        with pytest.raises(Overloaded):
            bench.call(key)
    if held is not None:
        held.close()


def test_when_the_store_comes_back_every_key_works_again(bench: Bench) -> None:
    key = bench.create()
    bench.lose_store()
    bench.let_pass(auth.TTL_S * 2)
    bench.restore_store()
    bench.let_pass(0.5)
    assert bench.gateway.store_error is None
    assert bench.call(key).name == "team"


def test_junk_stays_401_while_the_store_is_unreadable(bench: Bench) -> None:
    bench.create()
    bench.lose_store()
    bench.let_pass(auth.TTL_S * 2)
    with pytest.raises(Unauthenticated):
        bench.call("junk")


def test_a_store_that_is_known_to_be_failing_is_not_tried_by_requests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bench.create()
    bench.lose_store()
    bench.let_pass(0.5)
    monkeypatch.setattr(bench.store, "look_up", no_look_up)
    with pytest.raises(Overloaded):
        bench.call(key)


def test_a_gateway_does_not_start_on_a_store_that_it_cannot_read(bench: Bench) -> None:
    spoil(bench, "corrupt")
    with pytest.raises(StateError, match="backup"):
        Authenticator(bench.store, bench.clock.now_s())


# -- what a caller may do ---------------------------------------------------------------------------------------------


def test_a_key_without_a_list_may_use_every_model() -> None:
    check_model(Identity("abcdefgh", "team", "team", None), ("anything",))
    check_model(Identity.anonymous(), ("anything",))


def test_a_key_with_a_list_may_use_a_model_by_any_of_its_names_and_no_other() -> None:
    identity = Identity("abcdefgh", "team", "team", ("demo",))
    check_model(identity, ("ballast-demo", "demo"))
    for names in (("other",), ("demo2",), ("DEMO",), ("' OR 1=1 --",), ()):
        with pytest.raises(ModelNotAllowed) as refusal:
            check_model(identity, names)
        assert refusal.value.param == "model"


def test_the_cache_salt_is_the_tenants_own_and_steady(bench: Bench) -> None:
    one, two = bench.call_with([]), Identity("abcdefgh", "b", "team-b", None)
    same_tenant = Identity("hgfedcba", "b2", "team-b", None)
    salts = [bench.gateway.cache_salt(identity) for identity in (one, two, same_tenant)]
    assert salts[0] != salts[1] == salts[2]
    assert len(bytes.fromhex(salts[1])) == 32
    bench.let_pass(0.5)
    assert Authenticator(bench.store, bench.clock.now_s()).cache_salt(two) == salts[1]


def test_the_salt_of_another_server_differs(bench: Bench, tmp_path: Path) -> None:
    with KeyStore.open(tmp_path / "other") as store:
        other = Authenticator(store, bench.clock.now_s())
        assert other.cache_salt(Identity.anonymous()) != bench.gateway.cache_salt(Identity.anonymous())


def test_the_last_use_of_each_key_is_handed_over_once(bench: Bench) -> None:
    key = bench.create()
    identity = bench.call(key)
    bench.clock.advance(1.0)
    bench.call(key)
    used = bench.gateway.take_last_used()
    assert used == {identity.key_id: bench.clock.now_s()}
    assert bench.gateway.take_last_used() == {}
    bench.admin.touch(used)
    record: KeyRecord | None = bench.admin.look_up(identity.key_id)[1]
    assert record is not None
    assert record.last_used_at_s is not None
