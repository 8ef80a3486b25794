"""Who is alive, with what load: every replica this gateway knows, and the open connection to each.

Membership comes from outside (``Directory.update``: Ray Serve's long poll in production, a list in tests); load and
health come from the replicas themselves over their connections. No request waits on Ray.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Iterable

from serving.protocol.frames import NO_WORK, Load, StepSpeed, WorkDone
from serving.protocol.membership import ReplicaAddress
from serving.router.link import ReplicaLink
from serving.router.replica import Replica

logger = logging.getLogger("ballast.router")

#: A replica whose load report is that old gets no new request; one that is silent for so long is lost.
SILENT_S, LOST_S = 3.0, 15.0
#: About so far apart is the directory told that time passes.
TICK_S = 0.5
#: Steps after which a replica's own measure of what a step costs is good enough: a hundred of them, with a prompt or
#: two among them, can be wrong by a factor of five about a full batch.
NUM_STEPS_TO_KNOW = 1000.0


class Directory:
    """The replicas of all models, by model name.

    Args:
        secret: the cluster's shared secret.
        fallback_pools: (model, pool) of those that only stand in for others.
    """

    def __init__(self, secret: bytes, fallback_pools: Container[tuple[str, str]] = ()) -> None:
        self._secret = secret
        self._fallback_pools = fallback_pools
        self._replicas: dict[str, Replica] = {}
        self._listener: Callable[[], None] = lambda: None
        self._is_announced = False
        self._ticked_s: float | None = None
        self._work: dict[tuple[str, str], WorkDone] = {}
        self._speeds: dict[tuple[str, str], tuple[float, StepSpeed]] = {}

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after membership, readiness or load has changed, once per turn of the event loop."""
        self._listener = listener

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
        self.announce()

    def tick(self, now_s: float) -> None:
        """Call about twice a second, with the event loop's time: a replica reports four times a second, and one that
        does not is left out, then let go of with all its streams. While this process stood still it heard nobody: that
        time is not theirs.
        """
        stood_still_s = max(0.0, now_s - self._ticked_s - TICK_S) if self._ticked_s is not None else 0.0
        self._ticked_s = now_s
        for replica in self._replicas.values():
            if stood_still_s > TICK_S:
                replica.load_at_s = min(now_s, replica.load_at_s + stood_still_s)
            silence_s = now_s - replica.load_at_s if replica.link.is_open else 0.0
            was_silent, replica.is_silent = replica.is_silent, silence_s > SILENT_S
            if silence_s > LOST_S:
                logger.warning("replica %s has said nothing for %.0f s", replica.address.replica, silence_s)
                replica.link.abort()
            if replica.is_silent != was_silent:
                replica.refresh()
                self.announce()

    def work(self, model: str, pool: str) -> WorkDone:
        """What the engines of a pool have done while this gateway knew them; only grows."""
        return self._work.get((model, pool), NO_WORK)

    def _with_known_speed(self, pool: tuple[str, str], load: Load) -> Load:
        """A replica that has done little is as fast as the one of its pool that has measured most: with its seed alone
        it would look slow, get no request, and never find out."""
        num_steps = load["work"][0]
        most_steps, speed = self._speeds.get(pool, (0.0, load["speed"]))
        if num_steps >= min(most_steps, NUM_STEPS_TO_KNOW):
            self._speeds[pool] = num_steps, load["speed"]
            return load
        return {**load, "speed": speed}

    def _add_work(self, pool: tuple[str, str], done: WorkDone) -> None:
        steps, prefill, decode, kv, busy = (
            old + new for old, new in zip(self._work.get(pool, NO_WORK), done, strict=True)
        )
        self._work[pool] = steps, prefill, decode, kv, busy

    async def close(self) -> None:
        for replica in self._replicas.values():
            replica.link.close()
        self._replicas.clear()

    def _connect(self, address: ReplicaAddress) -> Replica:
        pool = (address.model, address.pool)
        link = ReplicaLink(address.address, address.replica, self._secret)
        replica = Replica(address, link, pool in self._fallback_pools)

        def on_load(load: Load) -> None:
            done = replica.on_load(self._with_known_speed(pool, load), asyncio.get_running_loop().time())
            if done is not None:
                self._add_work(pool, done)
            self.announce()

        def on_change() -> None:
            replica.refresh()
            self.announce()

        link.start(on_load=on_load, on_change=on_change)
        logger.info("replica %s joined pool %s", address.replica, address.pool)
        return replica

    def announce(self) -> None:
        """Something has changed that may let a waiting request go."""
        if not self._is_announced:
            self._is_announced = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._is_announced = False
        self._listener()
