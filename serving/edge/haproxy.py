"""Stands in for the ``haproxy`` binary that Ray Serve starts: closes the gaps in the config Ray writes, then becomes
HAProxy.

Ray Serve 2.60 has no setting for these (faults.md 5 and 6, security.md S4): a deadline for request headers (60 slow
sockets lock everybody out), statistics and metrics bound to all interfaces, an admin socket that any local user may
write, and error pages that turn a 503 into a plain-text 500. Ray reads the binary's path from
``RAY_SERVE_HAPROXY_BINARY_PATH``; this file runs with the standard library alone, once per start and reload.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

HEADER_TIMEOUT_S = 5
PR_SET_PDEATHSIG = 1
ERROR_BODY = (
    '{"error":{"message":"no gateway is available; try again","type":"service_unavailable_error","param":null,'
    '"code":"server_is_overloaded"}}'
)

#: (what Ray writes, what we write instead, how often it must occur). A pattern that is missing means that Ray
#: changed: better not to start than to start open.
_EDITS = (
    (r"(?m)^defaults\n    mode http$", f"defaults\n    mode http\n    timeout http-request {HEADER_TIMEOUT_S}s"),
    (r"stats socket (\S+) mode 666 level admin", r"stats socket \1 mode 600 level admin"),
    (r"(?m)^    bind :(\d+)$", r"    bind 127.0.0.1:\1"),
    (r"(?m)^  bind \*:(\d+)$", r"  bind 127.0.0.1:\1"),
    # With it HAProxy 2.8 stops watching a client whose request it has spliced, and `abortonclose` never acts.
    (r"(?m)^    option splice-request\n", ""),
    # A chunk of an answer is a few hundred bytes: moving it by pipe takes more calls than copying it.
    (r"(?m)^    option splice-response\n", ""),
)


class UnknownConfig(ValueError):
    """The config does not look like the one this module knows."""


def harden(config: str, page: Path, sockets: Path, public_host: str = "127.0.0.1") -> str:
    """Ray's config with the gaps closed. Raises ``UnknownConfig`` when an edit does not apply.

    Ray itself is told to use loopback, so that its gateways listen there alone; ``public_host`` is where HAProxy does.
    ``page`` is the error page, ``sockets`` the folder where this node's gateways listen.
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
    config = re.sub(r"(?m)^    server \S+ \S+ check backup$\n", "", config)
    if public_host != "127.0.0.1":
        pattern = r"(?m)^(frontend http_frontend\n    bind )127\.0\.0\.1:"
        config, count = re.subn(pattern, lambda match: f"{match[1]}{_bracketed(public_host)}:", config)
        if count != 1:
            raise UnknownConfig("no public listener in HAProxy's config")
    config, count = re.subn(r"(?m)^    errorfile (50[234]) \S+$", rf"    errorfile \1 {page}", config)
    if count == 0:
        raise UnknownConfig("no errorfile lines in HAProxy's config")
    return re.sub(r"(?m)^    server (\S+) (127\.0\.0\.1):(\d+) check", lambda match: _by_socket(match, sockets), config)


def socket_of(sockets: Path, server_name: str) -> Path:
    """Where a gateway listens for the HAProxy of its node. Of the name that Ray gives it, the last part is unique."""
    return sockets / f"{server_name.rpartition('-')[2]}.sock"


def _by_socket(match: re.Match[str], sockets: Path) -> str:
    """A gateway's line, with its socket if it has one; it is still checked on its port, where Ray drains it."""
    name, host, port = match.groups()
    path = socket_of(sockets, name)
    return f"    server {name} unix@{path} check addr {host} port {port}" if path.is_socket() else match[0]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def error_page() -> str:
    """A whole HTTP response, as HAProxy's ``errorfile`` wants it: our shape, and when to come back."""
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/json",
        f"content-length: {len(ERROR_BODY)}",
        "cache-control: no-store",
        "retry-after: 1",
        "connection: close",
    )
    return "\r\n".join(head) + "\r\n\r\n" + ERROR_BODY


def main(public_host: str, sockets: str, binary: str, arguments: list[str]) -> None:
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        page = path.with_name("unavailable.http")
        page.write_text(error_page(), newline="")
        path.write_text(harden(path.read_text(), page, Path(sockets), public_host))
    # Ray's proxy actor is the parent: without this an orphan would hold the port, and the actor's successor could
    # never bind it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
