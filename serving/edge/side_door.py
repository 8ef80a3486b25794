"""Closes a server that Ray Serve 2.60 opens in every replica: gRPC for calls between deployments, on all interfaces,
without a credential, which unpickles what it is sent (``ray/serve/_private/replica.py:1835``), so that whoever
reaches the port runs code.

Ray has no setting for it. Calls between our deployments do not go through Ray, so the server simply gets no port.
"""

from ray.serve._private import replica


def close_side_door() -> None:
    """To be called by every deployment's constructor, which runs before Ray Serve opens the port."""
    assert hasattr(replica, "add_port_to_grpc_server"), "Ray Serve has changed: see that its replicas listen nowhere"
    replica.add_port_to_grpc_server = _add_no_port


def _add_no_port(_server: object, _address: str) -> int:
    return 0
