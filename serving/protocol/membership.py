"""Where a replica listens: the record that crosses from replica to gateway through Ray Serve's long poll."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """A replica as its pool's membership lists it.

    ``address`` is ``unix:<path>`` or ``tcp:<host>:<port>``; ``version`` stands for model and config and is told to
    clients, ``model_version`` for the model alone, whatever the pool; ``max_model_len`` is in tokens; ``pid`` is the
    process on its node that serves; ``start_steps`` is how many seconds each step of its start took, in order, from its
    process's beginning until it could serve.
    """

    replica: str
    model: str
    pool: str
    address: str
    version: str
    max_model_len: int
    pid: int
    start_steps: Mapping[str, float] = field(default_factory=dict)
    model_version: str = ""

    @property
    def cold_start_s(self) -> float:
        """What the whole start took, from the process's beginning on; 0 when it was not measured."""
        return sum(self.start_steps.values())
