"""A server whose pools are sized by hand, on two nodes of Ray: ``python -m benchmarks.faults.by_hand --config FILE``.

What `ballast up` has no option for, because nobody but a test wants it: a policy that does what a file says, and a
second node on the same machine, which comes back a while after it was killed. Both nodes listen on loopback alone.
"""

import argparse
import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.cluster import OBJECT_STORE_BYTES, Cluster
from serving.config.load import load_config
from serving.lifecycle.server import StateClaim

TARGETS = "targets.json"
"""In the folder of decisions: replicas by pool. Pools that it does not name stay as they are."""
NODE_BACK_S = 5.0
"""How long a killed node stays away."""
POLL_S = 0.2


def set_targets(folder: Path, targets: Mapping[str, int]) -> None:
    """Have `ByHand` size the pools so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = folder / f"{TARGETS}.new"
    new.write_text(json.dumps(dict(targets)))
    new.replace(folder / TARGETS)


class ByHand:
    """An autoscaling policy for Ray Serve, constructed like `serving.autoscaler.serve_policy.FleetPolicy`."""

    def __init__(self, config: dict[str, Any], deployments: list[list[str]], folder: str) -> None:
        self._pools = {name: pool for _, pool, name in deployments}
        self._path = Path(folder) / TARGETS

    def __call__(self, contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], None]:
        targets = json.loads(self._path.read_text()) if self._path.exists() else {}
        pools = {identity: self._pools.get(context.deployment_name) for identity, context in contexts.items()}
        return {identity: targets[pool] for identity, pool in pools.items() if pool in targets}, None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.by_hand", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--engine-args", type=json.loads, required=True)
    parser.add_argument("--node-cpus", type=int, required=True, help="CPUs of the second node")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    asked_to_stop = threading.Event()
    with StateClaim(config, arguments.config) as claim:
        cluster = Cluster(config, runtime_dir=claim.runtime_dir)
        try:
            cluster.start()
            signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
            node = _start_node(arguments.node_cpus)
            cluster.deploy("scripted", arguments.engine_args, policy="benchmarks.faults.by_hand:ByHand")
            while not asked_to_stop.wait(POLL_S):
                if node.dead_processes() and not asked_to_stop.wait(NODE_BACK_S):
                    node = _start_node(arguments.node_cpus)
        finally:
            cluster.stop(config.server.shutdown_grace_s)


def _start_node(num_cpus: int) -> Any:
    """A second raylet that joins the cluster of this process. Ray's command refuses to, because of the setting that
    keeps the cluster on loopback."""
    import ray._private.node
    from ray._private.parameter import RayParams

    parameters = RayParams(
        gcs_address=ray.get_runtime_context().gcs_address,
        node_ip_address="127.0.0.1",
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        min_worker_port=0,
        max_worker_port=0,
    )
    return ray._private.node.Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)


if __name__ == "__main__":
    main()
