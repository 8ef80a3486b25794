"""What ``ballast keys create | list | revoke`` say. Store, time and randomness are arguments; the answer is text.

Raises OperatorError for what the operator mistyped, StateError for a store that cannot be used.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from serving.errors import OperatorError
from serving.tenancy.keys import PREFIX, KeyRecord, NewKey, Rng
from serving.tenancy.store import KeyStore

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
_CENTURY_S = 36_525 * 86_400
_COLUMNS = ("ID", "NAME", "TENANT", "KEY", "MODELS", "STATE", "CREATED", "EXPIRES", "LAST USED")


def create(store: KeyStore, new: NewKey, *, rng: Rng, now_s: float, as_json: bool = False) -> str:
    """Create a key. The answer is the only place where it can ever be read."""
    minted, record = store.create(new, rng, now_s)
    if as_json:
        return json.dumps({**_as_json(record, now_s), "key": minted.plaintext})
    return "\n".join(
        (
            f"Key {record.key_id} for {record.name} (tenant {record.tenant}), models: {_models(record)}, "
            f"expires: {_date(record.expires_at_s)}",
            "",
            f"    {minted.plaintext}",
            "",
            "Store it now: it is not shown again. Clients send it as 'Authorization: Bearer <key>'.",
        )
    )


def list_keys(store: KeyStore, *, now_s: float, as_json: bool = False) -> str:
    """Every key ever created, oldest first, as a table or a JSON list."""
    records = store.list_keys()
    if as_json:
        return json.dumps([_as_json(record, now_s) for record in records])
    if not records:
        return "No keys. Create one with: ballast keys create NAME"
    return _table([_COLUMNS, *(_row(record, now_s) for record in records)])


def revoke(store: KeyStore, id_or_name: str, *, now_s: float, as_json: bool = False) -> str:
    """Revoke a key for good."""
    record = store.revoke(id_or_name, now_s)
    if as_json:
        return json.dumps(_as_json(record, now_s))
    return f"Key {record.key_id} of {record.name} is revoked; every gateway refuses it within a second."


def parse_expiry(text: str, now_s: float) -> float | None:
    """When a key expires, in seconds since 1970, or None for ``never``.

    Takes a duration (``30d``, ``12h``, ``45m``, ``8w``) or an ISO date or time, UTC unless it names a zone; a date
    alone means the beginning of that day. Raises OperatorError when it is none of these, past, or over a century away.
    """
    if text == "never":
        return None
    duration = _DURATION.fullmatch(text)
    if duration:
        expires_at_s = now_s + int(duration[1]) * _UNITS_S[duration[2]]
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise OperatorError(
                f"{text[:80]!r} is no expiry: give a duration such as 30d or 12h, a date such as 2031-01-31, or never."
            ) from error
        expires_at_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if expires_at_s <= now_s:
        raise OperatorError(f"{text!r} has passed: the key would be born expired.")
    if expires_at_s > now_s + _CENTURY_S:
        raise OperatorError(f"{text!r} is over a century away; say never.")
    return expires_at_s


def _as_json(record: KeyRecord, now_s: float) -> dict[str, object]:
    return {
        "id": record.key_id,
        "name": record.name,
        "tenant": record.tenant,
        "last4": record.last4,
        "models": record.models,
        "state": record.state(now_s),
        "created_at": _iso(record.created_at_s),
        "expires_at": _iso(record.expires_at_s),
        "revoked_at": _iso(record.revoked_at_s),
        "last_used_at": _iso(record.last_used_at_s),
    }


def _row(record: KeyRecord, now_s: float) -> tuple[str, ...]:
    return (
        record.key_id,
        record.name,
        record.tenant,
        f"{PREFIX}{record.key_id}...{record.last4}",
        _models(record),
        record.state(now_s),
        _date(record.created_at_s),
        _date(record.expires_at_s),
        _date(record.last_used_at_s),
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _models(record: KeyRecord) -> str:
    return "all" if record.models is None else ",".join(record.models)


def _iso(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def _date(at_s: float | None) -> str:
    return "never" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
