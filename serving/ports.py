"""Ports of loopback for what is started here."""

import contextlib
import random
import socket
from pathlib import Path

from serving.errors import MachineError

_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_OWN_PORT = 20_000
"""Below it are the ports of Ray's workers (10002 to 19999)."""
_NUM_ATTEMPTS = 100


def free_port() -> int:
    """A port that is free now, and that nobody gets who leaves the choice to the kernel, as the gRPC servers of a
    starting Ray do: they took what had just been found free. Raises MachineError when there is none.
    """
    own = range(_FIRST_OWN_PORT, int(_EPHEMERAL_PORTS.read_text().split()[0]))
    # Where the kernel hands out those too, its choice is as good as ours.
    for port in [*random.SystemRandom().sample(own, min(len(own), _NUM_ATTEMPTS)), 0]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise MachineError("no port of loopback is free")
