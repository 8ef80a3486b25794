"""Ray's head node without three processes that a server of one application has no use for.

``ray.init`` always starts a dashboard (even ``include_dashboard=False`` leaves its usage reporter), the cluster
autoscaler's monitor and a forwarder of workers' output. Here they cost 290 MB and a third of the time that Ray takes
to start (ray 2.60.0, two cores), and Ray has no setting to leave them out.
"""

from typing import Any

import ray._private.node
from ray._private.node import Node


class LeanNode(Node):  # type: ignore[misc]  # Ray is not typed
    """GCS and raylet (with its two agents) only."""

    def start_api_server(self, *_: Any, **__: Any) -> None:
        self._webui_url = ""

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass


def use_lean_node() -> None:
    """To be called before ``ray.init``, which looks the class up there."""
    for name in ("start_api_server", "start_monitor", "start_log_monitor"):
        assert hasattr(Node, name), f"Ray has changed: it has no {name} to leave out"
    ray._private.node.Node = LeanNode
