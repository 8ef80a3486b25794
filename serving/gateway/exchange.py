"""What the gateway knows of one request, filled in on its way and read once at its end."""

from dataclasses import dataclass, field

from serving.errors import BallastError
from serving.protocol.frames import NO_USAGE, Usage
from serving.protocol.openai import Dialect
from serving.telemetry.metrics import LatencyBuffer


class ClientGone(BallastError):
    """The client closed its connection; nobody reads the answer."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer. Times are the event loop's monotonic seconds; ``pool`` is empty until a replica is
    chosen.
    """

    request_id: str
    method: str
    route: str
    dialect: Dialect
    arrived_s: float
    client_request_id: str | None = None
    key_id: str | None = None
    model: str = ""
    pool: str = ""
    replica: str = ""
    version: str = ""
    fallback: str | None = None
    """Why a fallback pool served it, if one did."""
    is_stream: bool = False
    accepted_s: float | None = None
    sent_s: float | None = None
    first_byte_s: float | None = None
    blocked_s: float = 0.0
    """For how long in all its client has kept the answer waiting, by not reading."""
    status: int = 0
    error_code: str | None = None
    usage: Usage = field(default_factory=NO_USAGE.copy)
    is_body_read: bool = False
    is_response_started: bool = False
    is_client_gone: bool = False
    gaps: LatencyBuffer = field(default_factory=LatencyBuffer)

    @property
    def code(self) -> str:
        """The status for logs and metrics; 499 when the client left first."""
        return "499" if self.is_client_gone else str(self.status)
