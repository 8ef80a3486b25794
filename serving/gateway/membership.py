"""Pool membership from Ray Serve's controller to the directory: one long poll for all pools, no call per request."""

import asyncio
import logging
from collections.abc import Iterable

import ray
from ray.serve._private.common import DeploymentID, DeploymentTargetInfo
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

from serving.protocol.membership import ReplicaAddress
from serving.router.directory import Directory

logger = logging.getLogger("ballast.gateway")


class MembershipWatcher:
    """Keeps ``directory`` in step with the replicas that Ray Serve runs.

    Ray Serve's own routers learn of replicas the same way. While the controller is away, what was last heard stays
    true.

    Args:
        deployments: (model, pool, deployment name) of every pool.
    """

    def __init__(self, directory: Directory, app: str, deployments: Iterable[tuple[str, str, str]]) -> None:
        self._directory = directory
        listeners = {
            (LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(name=name, app_name=app)): self._listener(model, pool)
            for model, pool, name in deployments
        }
        self._client = LongPollClient(
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE),
            listeners,
            call_in_event_loop=asyncio.get_running_loop(),
            client_id=f"ballast-gateway-{id(self)}",
        )

    def stop(self) -> None:
        self._client.stop()

    def _listener(self, model: str, pool: str):  # type: ignore[no-untyped-def]  # the type is Ray's, and private
        def on_targets(targets: DeploymentTargetInfo) -> None:
            metadata = [replica.replica_metadata for replica in targets.running_replicas]
            self._directory.update(model, pool, [ReplicaAddress(**entry) for entry in metadata if entry])

        return on_targets
