"""By which name the admin port, which asks for no key, may be reached.

A web page can give its own name this machine's loopback address (DNS rebinding); to the browser the server is then of
the page's own origin, and the page may read its answers. It cannot change the name that the browser sends.
"""

import ipaddress
from collections.abc import Iterable


def is_local_name(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the ``host`` header (ASGI: lower-case names) is an IP address, `localhost` or below it, or not there at
    all, as in no browser."""
    host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1").lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not name or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
