"""Which replicas Ray Serve stops when a pool is made smaller: those with least left to do.

Ray 2.60 takes the newest on the emptiest node and offers no way to say otherwise. Inside its controller, where our
policy runs, the method that picks is wrapped: the nodes and the numbers stay Ray's, the replicas on them become the
least busy. If anything about it is not as expected, Ray's own choice stands; streams of a replica that stops finish or
move either way.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger("ballast.autoscaler")

_METHOD = "_get_replicas_to_stop"

Streams = Callable[[], Mapping[str, float]]
"""Open streams by replica, as was last heard."""


def install(scheduler_class: Any, streams: Streams) -> None:
    """Wrap the method that picks, in the process that this is called in. Called again, it takes the new ``streams``."""
    original = getattr(scheduler_class, _METHOD)
    original = getattr(original, "wrapped_by_ballast", original)

    def pick(self: Any, deployment_id: Any, max_num_to_stop: int, *gangs: Any, **more: Any) -> Any:
        picked = original(self, deployment_id, max_num_to_stop, *gangs, **more)
        if any(gangs) or any(more.values()):
            return picked
        try:
            return _least_busy(picked, self._running_replicas[deployment_id], streams())
        except Exception:  # Ray's internals have changed, and its choice is good enough
            logger.exception("Ray Serve chooses which replicas of %s stop", deployment_id)
            return picked

    pick.wrapped_by_ballast = original  # type: ignore[attr-defined]
    setattr(scheduler_class, _METHOD, pick)


def _least_busy(picked: set[Any], running: Mapping[Any, str], streams: Mapping[str, float]) -> set[Any]:
    """``picked``, with those that run exchanged for the least busy ones of the same nodes; of equals, the newest.

    ``running``: node by replica, oldest first.
    """
    number_by_node = Counter(running[replica] for replica in picked if replica in running)
    found = {replica for replica in picked if replica not in running}
    for node, number in number_by_node.items():
        there = [replica for replica, its_node in reversed(list(running.items())) if its_node == node]
        there.sort(key=lambda replica: streams.get(replica.unique_id, 0.0))
        found.update(there[:number])
    return found
