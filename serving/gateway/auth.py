"""Who is calling, and which models they may use.

A key that was checked before costs no SQLite call: ``refresh``, which the gateway calls every ``REFRESH_S``, confirms
that the store has not changed, and drops what was remembered when it has. So a revoked key is refused within a second.
When the store cannot be read, keys that were checked stay valid for ``TTL_S`` and others are answered 503, never 401.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from serving.errors import ConfigError, ModelNotAllowed, Overloaded, StateError, Unauthenticated
from serving.tenancy import keys
from serving.tenancy.store import KeyStore, StoreVersion

REFRESH_S = 0.5
TTL_S = 30.0
MAX_REJECTED = 4096
STORE_BUSY_TIMEOUT_S = 0.005
"""How long the event loop may wait for a locked store. WAL readers wait only while the store is recovered or closed."""

_MISSING = "You didn't provide an API key. Send it in the header 'Authorization: Bearer <key>' or 'x-api-key: <key>'."
_SCHEME = "The Authorization header must have the form 'Bearer <key>'."
_AMBIGUOUS = "The Authorization and x-api-key headers carry different keys; send one."
_INCORRECT = "Incorrect API key provided."
_REVOKED = "This API key has been revoked."
_EXPIRED = "This API key has expired."
_NO_DIGEST = bytes(keys.DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. ``models`` is the allow-list, None for every model; accounts and limits go by ``tenant``."""

    key_id: str
    name: str
    tenant: str
    models: tuple[str, ...] | None

    @classmethod
    def anonymous(cls) -> "Identity":
        """Everyone, on a server whose store never held a key."""
        return _ANONYMOUS


_ANONYMOUS = Identity(keys.ANONYMOUS, keys.ANONYMOUS, keys.ANONYMOUS, None)


@dataclass(frozen=True, slots=True)
class _Verified:
    identity: Identity
    expires_at_s: float | None


class Authenticator:
    """Checks the credentials of requests against one store. Single-threaded: belongs to the gateway's event loop."""

    def __init__(self, store: KeyStore, now_s: float) -> None:
        """Raises StateError when the store cannot be read: a gateway must not start without knowing its mode."""
        self._store = store
        self._verified: dict[bytes, _Verified] = {}  # no bound needed: it holds issued keys only
        self._rejected: dict[bytes, str] = {}
        self._salts: dict[str, str] = {}
        self._last_used: dict[str, float] = {}
        self._version: StoreVersion | None = None
        self._confirmed_at_s = now_s
        self._key_required = False
        self.store_error: StateError | None = None
        """Why the store could not be read at the last attempt; None while all is well."""
        self._confirm(store.version(), now_s)

    @property
    def key_required(self) -> bool:
        """Once true, true until the process ends: losing its keys must not open a server."""
        return self._key_required

    def refresh(self, now_s: float) -> None:
        """Ask the store for changes (about 15 µs). Failure is kept in ``store_error``, not raised."""
        try:
            version = self._store.version()
        except StateError as error:
            self.store_error = error
        else:
            self._confirm(version, now_s)

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]], now_s: float) -> Identity:
        """Who sent these headers (ASGI: lower-case names).

        Raises Unauthenticated; Overloaded (code ``key_store_unavailable``) when the store cannot tell.
        """
        if not self._is_confirmed(now_s) and self.store_error is None:
            self.refresh(now_s)
        if not self._key_required:
            if not self._is_confirmed(now_s):
                raise self._unavailable()
            return _ANONYMOUS
        parsed = keys.parse(_credential(headers).decode("latin-1"))
        if parsed is None:
            raise Unauthenticated(_INCORRECT)
        digest = keys.digest(self._store.pepper, parsed.plaintext)
        found = self._remembered(digest, now_s) or self._verify(parsed.key_id, digest, now_s)
        if found.expires_at_s is not None and now_s >= found.expires_at_s:
            raise Unauthenticated(_EXPIRED)
        self._last_used[found.identity.key_id] = now_s
        return found.identity

    def cache_salt(self, identity: Identity) -> str:
        """The engine's prefix-cache salt: tenants must not learn from timing what others asked."""
        salt = self._salts.get(identity.tenant)
        if salt is None:
            secret = keys.derive_secret(self._store.pepper, "prefix-cache-salt")
            salt = self._salts[identity.tenant] = hmac.digest(secret, identity.tenant.encode(), "sha256").hex()
        return salt

    def fingerprint(self, identity: Identity, request: bytes) -> bytes:
        """What a tenant's request is recognised by without being kept."""
        secret = keys.derive_secret(self._store.pepper, "request-fingerprint")
        return hmac.digest(secret, identity.tenant.encode() + b"\0" + request, "sha256")

    def take_last_used(self) -> dict[str, float]:
        """Key ids and when each was last used, since the last call. For ``KeyStore.touch``, in a thread of its own."""
        taken, self._last_used = self._last_used, {}
        return taken

    def put_back_last_used(self, taken: dict[str, float]) -> None:
        """What was taken could not be saved."""
        self._last_used = {**taken, **self._last_used}

    def _is_confirmed(self, now_s: float) -> bool:
        return abs(now_s - self._confirmed_at_s) <= TTL_S  # abs: a clock set back must not lengthen the TTL

    def _confirm(self, version: StoreVersion, now_s: float) -> None:
        """The store was read now and is at ``version``: what was remembered from it holds, or goes."""
        if version != self._version:
            self._version = version
            self._verified.clear()
            self._rejected.clear()
            self._salts.clear()
        self._key_required = self._key_required or version.ever_held_key
        self._confirmed_at_s = now_s
        self.store_error = None

    def _remembered(self, digest: bytes, now_s: float) -> _Verified | None:
        if not self._is_confirmed(now_s):
            return None
        if digest in self._rejected:
            raise Unauthenticated(self._rejected[digest])
        return self._verified.get(digest)

    def _verify(self, key_id: str, digest: bytes, now_s: float) -> _Verified:
        """One indexed look-up; a store that is known to be failing is left to ``refresh``."""
        if self.store_error is not None:
            raise self._unavailable()
        try:
            version, record = self._store.look_up(key_id)
        except StateError as error:
            self.store_error = error
            raise self._unavailable() from error
        self._confirm(version, now_s)
        matches = keys.same_digest(digest, _NO_DIGEST if record is None else record.digest)
        if record is None or not matches:
            raise self._reject(digest, _INCORRECT)
        if record.revoked_at_s is not None:
            raise self._reject(digest, _REVOKED)
        found = _Verified(Identity(record.key_id, record.name, record.tenant, record.models), record.expires_at_s)
        self._verified[digest] = found
        return found

    def _reject(self, digest: bytes, message: str) -> Unauthenticated:
        """Remember the refusal; the oldest one gives way, so a flood of made-up keys cannot fill the memory."""
        if len(self._rejected) >= MAX_REJECTED:
            del self._rejected[next(iter(self._rejected))]
        self._rejected[digest] = message
        return Unauthenticated(message)

    def _unavailable(self) -> Overloaded:
        return Overloaded("API keys cannot be checked at the moment.", code="key_store_unavailable", retry_after_s=1.0)


def check_model(identity: Identity, model_names: Iterable[str]) -> None:
    """See that the key may use a model, given all of the model's names. Raises ModelNotAllowed."""
    if identity.models is not None and not any(name in identity.models for name in model_names):
        raise ModelNotAllowed("This API key may not use this model.", param="model")


def check_bind(host: str, num_keys: int) -> None:
    """Without any key, answer on loopback only. Raises ConfigError.

    ``num_keys`` counts every key ever created (``KeyStore.num_keys``): such a store asks every request for a key.
    """
    if num_keys == 0 and not _is_loopback(host):
        raise ConfigError(
            f"server.host is {host!r}, which other machines can reach, and no API key exists: anyone could use this "
            "server. Create a key with 'ballast keys create NAME', or set server.host to 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may come to mean any address


def _credential(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The one key that the headers carry, however often. Raises Unauthenticated; never quotes a header."""
    credential: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if value[:7].lower() != b"bearer ":
                raise Unauthenticated(_SCHEME)
            value = value[7:]
        elif name != b"x-api-key":
            continue
        value = value.strip()
        if credential is not None and value != credential:
            raise Unauthenticated(_AMBIGUOUS)
        credential = value
    if credential is None:
        raise Unauthenticated(_MISSING)
    return credential
