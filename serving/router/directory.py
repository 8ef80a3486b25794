"""Who is alive, with what load: every replica this gateway knows, and the open connection to each.

Membership comes from outside (``Directory.update``: Ray Serve's long poll in production, a list in tests); load and
health come from the replicas themselves over their connections. No request waits on Ray.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.protocol.frames import Load
from serving.protocol.membership import ReplicaAddress
from serving.router.breaker import Breaker
from serving.router.link import ReplicaLink

logger = logging.getLogger("ballast.router")

#: A replica whose load report is that old gets no new request; one that is silent for so long is lost.
SILENT_S, LOST_S = 3.0, 15.0


@dataclass(slots=True)
class Replica:
    """A known replica: its address, the link to it, and the load it last reported with the time of that report."""

    address: ReplicaAddress
    link: ReplicaLink
    load: Load | None = None
    load_at_s: float = 0.0
    breaker: Breaker = field(default_factory=Breaker)
    is_silent: bool = False
    has_dead_engine: bool = False
    """It has said so; its process ends in a moment."""

    @property
    def is_ready(self) -> bool:
        """Connected, accepted, heard of lately, alive, and not draining."""
        is_leaving = self.has_dead_engine or (self.load is not None and self.load["draining"])
        return self.link.is_open and not self.is_silent and not is_leaving

    @property
    def pending(self) -> int:
        """Requests it works on: its own last word, or what this gateway has open there when that is more."""
        reported = self.load["running"] + self.load["waiting"] if self.load else 0
        return max(reported, self.link.num_streams)


class Directory:
    """The replicas of all models, by model name."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._replicas: dict[str, Replica] = {}
        self._changed = asyncio.Event()

    def replicas(self, model: str) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.address.model == model]

    def all(self) -> list[Replica]:
        return list(self._replicas.values())

    def update(self, model: str, pool: str, members: Iterable[ReplicaAddress]) -> None:
        """Make ``members`` the whole of one pool: connect to those that are new, let go of those that are gone.

        A link to a replica that left is closed once its streams have ended; a dead one has ended them already.
        """
        wanted = {member.replica: member for member in members}
        for name, replica in list(self._replicas.items()):
            if (replica.address.model, replica.address.pool) == (model, pool) and name not in wanted:
                logger.info("replica %s left pool %s", name, pool)
                replica.link.retire()
                del self._replicas[name]
        for name, address in wanted.items():
            if name not in self._replicas:
                self._replicas[name] = self._connect(address)
        self._announce()

    def tick(self, now_s: float) -> None:
        """Call about twice a second, with the event loop's time: a replica reports four times a second, and one that
        does not is left out, then let go of with all its streams.
        """
        for replica in self._replicas.values():
            silence_s = now_s - replica.load_at_s if replica.link.is_open else 0.0
            was_silent, replica.is_silent = replica.is_silent, silence_s > SILENT_S
            if silence_s > LOST_S:
                logger.warning("replica %s has said nothing for %.0f s", replica.address.replica, silence_s)
                replica.link.abort()
            if replica.is_silent != was_silent:
                self._announce()

    async def changed(self, timeout_s: float) -> bool:
        """Wait until membership, readiness or load may have changed; False after ``timeout_s``."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        for replica in self._replicas.values():
            replica.link.close()
        self._replicas.clear()

    def _connect(self, address: ReplicaAddress) -> Replica:
        replica = Replica(address, ReplicaLink(address.address, address.replica, self._secret))

        def on_load(load: Load) -> None:
            replica.load = load
            replica.is_silent = False
            replica.load_at_s = asyncio.get_running_loop().time()
            self._announce()

        replica.link.start(on_load=on_load, on_change=self._announce)
        logger.info("replica %s joined pool %s", address.replica, address.pool)
        return replica

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
