"""Reading a request's body: bounded in bytes and in time, of a type we take."""

import asyncio
from collections.abc import Callable

from serving.errors import BodyTimeout, BodyTooLarge, HeadersTooLarge, UnsupportedMediaType
from serving.gateway.exchange import ClientGone
from serving.protocol.asgi import Receive

Headers = list[tuple[bytes, bytes]]


def check_headers(headers: Headers, max_headers: int, max_header_bytes: int) -> None:
    """Raises HeadersTooLarge."""
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
    if len(headers) > max_headers or size > max_header_bytes:
        raise HeadersTooLarge(
            f"the request has {len(headers)} headers of {size} bytes; at most {max_headers} of {max_header_bytes} bytes"
        )


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a header, names in lower case as ASGI gives them."""
    for key, value in headers:
        if key == name:
            return value
    return None


def check_media(headers: Headers, max_bytes: int) -> None:
    """Refuse what cannot be read before reading it. Raises UnsupportedMediaType, BodyTooLarge."""
    encoding = header(headers, b"content-encoding")
    if encoding not in (None, b"", b"identity"):
        raise UnsupportedMediaType("Content-Encoding is not supported; send the body as it is")
    media_type = (header(headers, b"content-type") or b"").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise UnsupportedMediaType("Content-Type must be application/json")
    length = header(headers, b"content-length") or b"0"
    if length.isdigit() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes)


async def read_body(receive: Receive, max_bytes: int, timeout_s: float, on_bytes: Callable[[int], None]) -> bytes:
    """The whole body; ``on_bytes`` is told of each part that comes. Raises BodyTooLarge, BodyTimeout, ClientGone, and
    what ``on_bytes`` raises."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, max_bytes, on_bytes)
    except TimeoutError as error:
        raise BodyTimeout(f"the request body did not arrive within {timeout_s:g} s") from error


async def _read(receive: Receive, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        on_bytes(len(body))
        return body
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left before its request was whole")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        on_bytes(len(parts[-1]))
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is over {max_bytes} bytes (limits.max_body_bytes)")
