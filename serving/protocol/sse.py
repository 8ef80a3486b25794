"""Server-sent events as OpenAI's and Anthropic's clients read them."""

from collections.abc import Iterator

import orjson

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def event(data: object, name: str | None = None) -> bytes:
    """One event; ``data`` is serialised as JSON."""
    prefix = b"event: " + name.encode() + b"\n" if name else b""
    return prefix + b"data: " + orjson.dumps(data) + b"\n\n"


class EventDecoder:
    """Cuts a byte stream into the ``data`` of its events; comments and other fields are dropped.

    Accepts LF, CRLF and CR line ends and data split at any byte (WHATWG HTML, "Parsing an event stream").
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of each event that ``chunk`` completes."""
        text = self._tail + chunk
        # A CR at the very end may be the first half of a CRLF: leave it for the next call.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._tail = lines.pop() + held
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                yield b"\n".join(self._data)
                self._data.clear()

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
