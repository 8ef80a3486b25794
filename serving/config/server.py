"""The ``server`` section: where Ballast listens, where it keeps state, how it stops."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from serving.config.section import ConfigPath, Port, Section

ADMIN_HOST = "127.0.0.1"
"""The admin listener never leaves the machine; whoever needs it from afar brings a tunnel."""

LogLevel = Literal["debug", "info", "warning", "error"]


def listen_host(value: str) -> str:
    """``value`` if a socket can listen there; ValueError otherwise. Host names are not looked up."""
    if value == "localhost":
        return value
    try:
        ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError("must be an IP address of this machine, `localhost`, or 0.0.0.0 for all of them") from error
    return value


class ServerConfig(Section):
    """Listeners, state and shutdown of one Ballast server."""

    host: Annotated[str, AfterValidator(listen_host)] = Field(
        default="127.0.0.1",
        description="Address of the public endpoint. Anything but loopback needs at least one API key.",
    )
    port: Port = Field(default=8000, description="Port of the public, OpenAI-compatible endpoint.")
    admin_port: Port = Field(default=8001, description="Port of /metrics and /admin; always on 127.0.0.1.")
    state_dir: ConfigPath = Field(
        default=Path("~/.local/state/ballast"),
        validate_default=True,
        description="Folder of keys, logs and decisions. BALLAST_STATE_DIR overrides it.",
    )
    gateways: int = Field(default=1, ge=1, le=64, description="Gateway replicas.")
    max_connections: int = Field(
        default=4096, ge=16, le=1_000_000, description="Open client connections of the whole server."
    )
    keep_alive_s: float = Field(
        default=10.0, ge=1, le=60, description="Seconds between `: keep-alive` comments on a silent stream."
    )
    shutdown_grace_s: float = Field(
        default=30.0, ge=0, le=3600, description="Seconds that admitted requests get to finish on stop."
    )
    log_level: LogLevel = Field(default="info", description="Least severe log line that is written.")

    @model_validator(mode="after")
    def _distinct_ports(self) -> Self:
        if self.port == self.admin_port:
            raise ValueError(f"port and admin_port are both {self.port}; they must differ")
        return self

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the public endpoint."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    @property
    def log_path(self) -> Path:
        """The JSON log that all processes of the server append to."""
        return self.state_dir / "logs" / "ballast.jsonl"

    @property
    def decisions_dir(self) -> Path:
        """Where the autoscaler records what it decides."""
        return self.state_dir / "decisions"

    @property
    def admin_host(self) -> str:
        return ADMIN_HOST
