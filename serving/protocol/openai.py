"""Error bodies in the three dialects clients speak, and headers that go with them."""

import enum

import orjson

from serving.errors import ApiError
from serving.protocol import sse


class Dialect(enum.Enum):
    """How a route's clients expect an error to look."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


#: Anthropic's error types by status; its clients choose an exception class by status alone.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _openai_error(error: ApiError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.answer.type, "param": error.param, "code": error.code}


def _anthropic_error(error: ApiError) -> dict[str, object]:
    kind = _ANTHROPIC_TYPES.get(
        error.answer.status, "invalid_request_error" if error.answer.status < 500 else "api_error"
    )
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_body(error: ApiError, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """The body of an error response."""
    if dialect is Dialect.ANTHROPIC:
        return orjson.dumps(_anthropic_error(error))
    return orjson.dumps({"error": _openai_error(error)})


def error_event(error: ApiError, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """What ends a stream that cannot finish. Clients raise on it; no ``[DONE]`` and no ``finish_reason`` follows."""
    if dialect is Dialect.ANTHROPIC:
        return sse.event(_anthropic_error(error), "error")
    if dialect is Dialect.RESPONSES:
        # The Responses stream has typed events; official clients raise on `error` inside any event's data as well.
        return sse.event({**_openai_error(error), "type": "error", "error": _openai_error(error)}, "error")
    return sse.event({"error": _openai_error(error)})


def error_headers(error: ApiError) -> list[tuple[bytes, bytes]]:
    """Headers that say whether and when to come back (official clients obey all three)."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        headers.append((b"retry-after-ms", str(max(1, round(error.retry_after_s * 1000))).encode()))
    # Official clients retry these statuses unless told otherwise.
    is_retried = error.answer.status in (408, 409, 429) or error.answer.status >= 500
    if is_retried and not error.answer.retryable:
        headers.append((b"x-should-retry", b"false"))
    if error.answer.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
