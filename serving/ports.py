"""Ports of loopback for what is started here."""

import contextlib
import random
import socket
from collections.abc import Container
from pathlib import Path

from serving.errors import MachineError

_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_OWN_PORTS = range(20_000, 30_000)
"""Below are the ports of Ray's workers (10002 to 19999), above those of Ray Serve's replicas (30000 to 31000)."""
_NUM_ATTEMPTS = 100


def free_port() -> int:
    """A port that is free now, and that nobody gets who leaves the choice to the kernel, as the gRPC servers of a
    starting Ray do: they took what had just been found free. Raises MachineError when there is none.
    """
    first_of_kernel = int(_EPHEMERAL_PORTS.read_text().split()[0])
    own = range(_OWN_PORTS.start, min(_OWN_PORTS.stop, first_of_kernel))
    # Where the kernel hands out those too, its choice is as good as ours.
    for port in [*random.SystemRandom().sample(own, min(len(own), _NUM_ATTEMPTS)), 0]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise MachineError("no port of loopback is free")


def free_ports(number: int, besides: Container[int] = ()) -> list[int]:
    """So many different ones, none of ``besides``: what is to be taken soon is free still. Raises MachineError."""
    found: list[int] = []
    while len(found) < number:
        port = free_port()
        if port not in besides and port not in found:
            found.append(port)
    return found
