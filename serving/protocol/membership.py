"""Where a replica listens: the record that crosses from replica to gateway through Ray Serve's long poll."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """A replica as its pool's membership lists it.

    ``address`` is ``unix:<path>`` or ``tcp:<host>:<port>``; ``version`` stands for model and config and is told to
    clients; ``max_model_len`` is in tokens; ``pid`` is the replica's process on its node.
    """

    replica: str
    model: str
    pool: str
    address: str
    version: str
    max_model_len: int
    pid: int
