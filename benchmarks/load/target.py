"""The server to be measured: any OpenAI-compatible one, by its base URL."""

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.load.mistake import BenchError
from benchmarks.load.prompts import Endpoint

_PATHS: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. ``path`` is that of the API's root (``/v1``), without a slash at its end."""

    host: str
    port: int
    path: str
    is_tls: bool = False
    key: str | None = None

    @property
    def address(self) -> str:
        """Host and port as a URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.address}{self.path}"

    def head(self, endpoint: Endpoint, *, keeps_alive: bool = True) -> bytes:
        """A POST's head up to the value of content-length, which is the last header."""
        lines = [
            f"POST {self.path}{_PATHS[endpoint]} HTTP/1.1",
            f"host: {self.address}",
            "accept: text/event-stream",
            "content-type: application/json",
        ]
        if not keeps_alive:
            lines.append("connection: close")
        if self.key:
            lines.append(f"authorization: Bearer {self.key}")
        return "\r\n".join([*lines, "content-length: "]).encode()

    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.is_tls else None


def parse_target(url: str, key: str | None = None) -> Target:
    """``http://127.0.0.1:8000`` or ``https://host/v1``; without a path, ``/v1``. Raises BenchError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BenchError(f"'{url}' is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BenchError(f"'{url}' is no base URL; write one such as http://127.0.0.1:8000/v1")
    is_tls = parts.scheme == "https"
    path = parts.path.rstrip("/") or "/v1"
    for known in _PATHS.values():
        path = path.removesuffix(known)
    return Target(parts.hostname, port or (443 if is_tls else 80), path, is_tls, key)
