"""Stands in for the ``haproxy`` binary that Ray Serve starts: closes the gaps in the config Ray writes, then becomes
HAProxy.

Ray Serve 2.60 has no setting for these: a deadline for request headers (60 slow
sockets lock everybody out), statistics and metrics bound to all interfaces, an admin socket that any local user may
write, and error pages in HTML or, in place of a 503, a plain-text 500. Ray reads the binary's path from
``RAY_SERVE_HAPROXY_BINARY_PATH``; this file runs with the standard library alone, once per start and reload.
"""

import ctypes
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

HEADER_TIMEOUT_S = 5
BUFFER_BYTES = 65_536
MAX_HEADERS = 1_100
PR_SET_PDEATHSIG = 1


class ErrorPage(NamedTuple):
    """What HAProxy answers itself, in our shape. ``type`` and ``code`` are those of ``serving.errors``, which cannot be
    imported here; a test holds them in step.
    """

    status: int
    reason: str
    type: str
    code: str | None
    message: str
    retry_after_s: int | None = None

    @property
    def body(self) -> str:
        error = {"message": self.message, "type": self.type, "param": None, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":"))

    def response(self) -> str:
        """A whole HTTP response, as HAProxy's ``errorfile`` wants it."""
        head = [
            f"HTTP/1.1 {self.status} {self.reason}",
            "content-type: application/json",
            f"content-length: {len(self.body)}",
            "cache-control: no-store",
            "connection: close",
        ]
        if self.retry_after_s is not None:
            head.append(f"retry-after: {self.retry_after_s}")
        return "\r\n".join(head) + "\r\n\r\n" + self.body


_BAD = "invalid_request_error"
_UNAVAILABLE = ErrorPage(
    503, "Service Unavailable", "service_unavailable_error", "server_is_overloaded",
    "no gateway is available; try again", retry_after_s=1,
)  # fmt: skip
#: By the status that HAProxy means. For what is not even a request HAProxy 2.8 keeps to words of its own: a 400 or 408
#: made while it still reads headers (haproxy/haproxy#3032).
PAGES = {
    400: ErrorPage(400, "Bad Request", _BAD, None, "this is not a request of HTTP/1.1"),
    403: ErrorPage(403, "Forbidden", "permission_error", None, "this request is not allowed"),
    405: ErrorPage(405, "Method Not Allowed", _BAD, "method_not_allowed", "no such method here"),
    408: ErrorPage(
        408, "Request Timeout", "timeout", "request_timeout", f"the headers did not arrive within {HEADER_TIMEOUT_S} s"
    ),
    413: ErrorPage(413, "Content Too Large", _BAD, "body_too_large", "the body is too large"),
    429: ErrorPage(429, "Too Many Requests", "rate_limit_error", "rate_limit_exceeded", "too many requests"),
    500: ErrorPage(500, "Internal Server Error", "server_error", "internal_error", "the proxy failed"),
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}

#: (what Ray writes, what we write instead, how often it must occur). A pattern that is missing means that Ray
#: changed: better not to start than to start open.
_EDITS = (
    (r"(?m)^defaults\n    mode http$", f"defaults\n    mode http\n    timeout http-request {HEADER_TIMEOUT_S}s"),
    # Room for all the headers that a gateway may be told to take, and more: too many are its 431, in our shape.
    (r"(?m)^    tune\.bufsize \d+$", f"    tune.bufsize {BUFFER_BYTES}\n    tune.http.maxhdr {MAX_HEADERS}"),
    (r"stats socket (\S+) mode 666 level admin", r"stats socket \1 mode 600 level admin"),
    (r"(?m)^    bind :(\d+)$", r"    bind 127.0.0.1:\1"),
    (r"(?m)^  bind \*:(\d+)$", r"  bind 127.0.0.1:\1"),
    # With it HAProxy 2.8 stops watching a client whose request it has spliced, and `abortonclose` never acts.
    (r"(?m)^    option splice-request\n", ""),
    # A chunk of an answer is a few hundred bytes: moving it by pipe takes more calls than copying it.
    (r"(?m)^    option splice-response\n", ""),
)
#: A gateway's line, without the end of one that is only to stand in for others.
_GATEWAY = r"(?m)^    server (\S+) (127\.0\.0\.1):(\d+) check(?! backup)"
_SOCKET_PREFIX = "gateway-"
_PROBE_S = 0.5


class UnknownConfig(ValueError):
    """The config does not look like the one this module knows."""


def harden(config: str, pages: Path, sockets: Path, public_host: str = "127.0.0.1") -> str:
    """Ray's config with the gaps closed. Raises ``UnknownConfig`` when an edit does not apply.

    Ray itself is told to use loopback, so that its gateways listen there alone; ``public_host`` is where HAProxy does.
    ``pages`` is the folder of the error pages, ``sockets`` the one where this node's gateways listen.
    """
    if f"timeout http-request {HEADER_TIMEOUT_S}s" in config:
        return config
    for pattern, replacement in _EDITS:
        config, count = re.subn(pattern, replacement, config)
        if count != 1:
            raise UnknownConfig(f"expected one match of {pattern!r} in HAProxy's config, found {count}")
    # Before an app is deployed, and while no gateway is up, the answer is our 503 and not the text of Ray's own proxy.
    config = re.sub(
        r"(?m)^    http-request return status 404 content-type text/plain .*$",
        "    http-request deny deny_status 503",
        config,
    )
    # Ray forgets its gateways for as long as it builds an application anew (`ballast apply`), and they serve on.
    found = "" if re.search(_GATEWAY, config) else _listening(sockets)
    config = re.sub(r"(?m)^    server \S+ \S+ check backup$\n", lambda _: found, config)
    if public_host != "127.0.0.1":
        pattern = r"(?m)^(frontend http_frontend\n    bind )127\.0\.0\.1:"
        config, count = re.subn(pattern, lambda match: f"{match[1]}{_bracketed(public_host)}:", config)
        if count != 1:
            raise UnknownConfig("no public listener in HAProxy's config")
    config, count = re.subn(r"(?m)(?:^    errorfile \d+ \S+\n)+", lambda _: _errorfiles(pages), config)
    if count == 0:
        raise UnknownConfig("no errorfile lines in HAProxy's config")
    return re.sub(_GATEWAY, lambda match: _by_socket(match, sockets), config)


def socket_of(sockets: Path, server_name: str) -> Path:
    """Where a gateway listens for the HAProxy of its node. Of the name that Ray gives it, the last part is unique."""
    return sockets / f"{_SOCKET_PREFIX}{server_name.rpartition('-')[2]}.sock"


def _listening(sockets: Path) -> str:
    """Lines of the gateways that take connections, whatever Ray says of them. Their ports, where they could be checked,
    are not known.
    """
    return "".join(
        f"    server {path.stem} unix@{path} no-check\n"
        for path in sorted(sockets.glob(f"{_SOCKET_PREFIX}*.sock"))
        if _takes_connections(path)
    )


def _takes_connections(path: Path) -> bool:
    """False for what a gateway that was killed has left."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _by_socket(match: re.Match[str], sockets: Path) -> str:
    """A gateway's line, with its socket if it has one; it is still checked on its port, where Ray drains it."""
    name, host, port = match.groups()
    path = socket_of(sockets, name)
    return f"    server {name} unix@{path} check addr {host} port {port}" if path.is_socket() else match[0]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _errorfiles(pages: Path) -> str:
    return "".join(f"    errorfile {status} {_page_path(pages, status)}\n" for status in PAGES)


def _page_path(pages: Path, status: int) -> Path:
    return pages / f"error-{status}.http"


def main(public_host: str, sockets: str, binary: str, arguments: list[str]) -> None:
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        for status, page in PAGES.items():
            _page_path(path.parent, status).write_text(page.response(), newline="")
        path.write_text(harden(path.read_text(), path.parent, Path(sockets), public_host))
    # Ray's proxy actor is the parent: without this an orphan would hold the port, and the actor's successor could
    # never bind it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
