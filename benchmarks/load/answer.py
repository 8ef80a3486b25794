"""One answer as it comes in: server-sent events, when each came, and what they said. No I/O.

An event that carries text, a tool call's fragment or reasoning counts as output; a role alone, an empty delta and the
usage do not. So the first token is the first that a user could see.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

_DONE = b"[DONE]"
_MOST_ERROR_BYTES = 2000
_OUTPUT_KEYS = ("content", "tool_calls", "reasoning_content", "reasoning")


@dataclass(slots=True)
class Answer:
    """All times are `time.monotonic` seconds; None: it has not come to that.

    ``output_tokens`` is what the server counted (its usage), else the number of output events.
    """

    keeps_text: bool = False
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    sent_s: float | None = None
    first_byte_s: float | None = None
    output_s: list[float] = field(default_factory=list)
    """When each output event came."""
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    text: list[str] = field(default_factory=list)
    error: str | None = None
    is_done: bool = False
    is_streamed: bool = False
    id: str | None = None
    """The server's name for it, from its first event."""
    _tail: bytes = b""

    def head(self, status: int, headers: dict[str, str], at_s: float) -> None:
        self.status, self.headers = status, headers
        self.first_byte_s = at_s
        self.is_streamed = status == 200 and headers.get("content-type", "").startswith("text/event-stream")

    def feed(self, body: bytes, at_s: float) -> None:
        """A piece of the body, which may end anywhere."""
        if not self.is_streamed:
            if len(self._tail) < _MOST_ERROR_BYTES:
                self._tail += body
            return
        if self._tail:
            body, self._tail = self._tail + body, b""
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n")
        if not body.endswith(b"\n\n"):
            body, separator, self._tail = body.rpartition(b"\n\n")
            if not separator:
                return
        for event in body.split(b"\n\n"):
            if event.startswith(b"data:"):
                self._event(event[5:].strip(), at_s)

    def _event(self, data: bytes, at_s: float) -> None:
        if data == _DONE:
            self.is_done = True
            return
        try:
            chunk = orjson.loads(data)
            if chunk.get("error") is not None:
                self.error = _message(chunk)
                return
            if self.id is None:
                self.id = chunk.get("id")
            if choices := chunk["choices"]:
                self._choice(choices[0], at_s)
            if usage := chunk.get("usage"):
                self.usage = usage
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.error = f"an event that is none of OpenAI's: {error!r}: {data[:200].decode('utf-8', 'replace')}"

    def _choice(self, choice: dict[str, Any], at_s: float) -> None:
        delta = choice.get("delta")
        if delta is None:
            text = choice.get("text")
            has_output = bool(text)
        else:
            text = delta.get("content")
            has_output = bool(text) or any(delta.get(key) for key in _OUTPUT_KEYS)
        if has_output:
            self.output_s.append(at_s)
            if self.keeps_text and text:
                self.text.append(text)
        if reason := choice.get("finish_reason"):
            self.finish_reason = reason

    def problem(self) -> str | None:
        """What is wrong with it, once it has ended; None: it is whole."""
        if self.error is not None:
            return self.error
        if self.status != 200:
            return f"HTTP {self.status}: {_body_message(self._tail)}"
        if not self.is_streamed:
            return f"not a stream but {self.headers.get('content-type', 'nothing')}: {_body_message(self._tail)}"
        if not self.is_done:
            return "the stream ended without [DONE]"
        return None

    @property
    def output_tokens(self) -> int:
        counted = (self.usage or {}).get("completion_tokens")
        return len(self.output_s) if counted is None else int(counted)

    @property
    def prompt_tokens(self) -> int:
        return int((self.usage or {}).get("prompt_tokens") or 0)

    @property
    def cached_tokens(self) -> int:
        details = (self.usage or {}).get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens") or 0)


def _message(value: dict[str, Any]) -> str:
    error = value["error"]
    if isinstance(error, dict):
        return f"{error.get('code') or error.get('type') or 'error'}: {error.get('message')}"
    return str(error)


def _body_message(body: bytes) -> str:
    """The message of OpenAI's error body, else its beginning as it is."""
    try:
        return _message(orjson.loads(body))
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
