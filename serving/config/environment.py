"""The one reader of environment variables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import JsonValue

from serving.config.findings import nearest
from serving.config.problem import Location, config_error
from serving.config.server import LogLevel, listen_host
from serving.errors import Problem

VARIABLES = {
    "BALLAST_CONFIG": "Path of the config file; default ballast.yaml in the current folder.",
    "BALLAST_STATE_DIR": "Overrides server.state_dir.",
    "BALLAST_HOST": "Overrides server.host.",
    "BALLAST_PORT": "Overrides server.port.",
    "BALLAST_LOG_LEVEL": "Overrides server.log_level.",
}
"""Every variable that Ballast reads, and what it does."""

FORBIDDEN = {
    "VLLM_SERVER_DEV_MODE": "opens the engine's development routes",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lets a request load weights from any path",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "makes the engine unpickle what it is sent",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "writes answers into the log",
}
"""vLLM's switches that must not be set, and why."""


@dataclass(frozen=True)
class Environment:
    """What the environment, or the command line over it, says; None where both are silent. ``admin_port`` has no
    variable.
    """

    config: Path | None = None
    state_dir: str | None = None
    host: str | None = None
    port: int | None = None
    admin_port: int | None = None
    log_level: str | None = None

    @property
    def overrides(self) -> dict[Location, JsonValue]:
        """Config values that the environment replaces, by location."""
        values: dict[str, JsonValue] = {
            "state_dir": self.state_dir,
            "host": self.host,
            "port": self.port,
            "admin_port": self.admin_port,
            "log_level": self.log_level,
        }
        return {("server", key): value for key, value in values.items() if value is not None}


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Read the BALLAST_* variables of ``environ``; an empty one counts as not set.

    Raises ConfigError for an unknown BALLAST_* variable, an impossible value, or a vLLM switch that opens the engine.
    """
    problems = tuple(_problems(environ))
    if problems:
        raise config_error("environment", problems)
    said = {name: environ.get(name) or None for name in VARIABLES}
    config, state_dir, port = said["BALLAST_CONFIG"], said["BALLAST_STATE_DIR"], said["BALLAST_PORT"]
    return Environment(
        config=Path(config) if config else None,
        state_dir=str(Path(state_dir).absolute()) if state_dir and not state_dir.startswith("~") else state_dir,
        host=said["BALLAST_HOST"],
        port=int(port) if port else None,
        log_level=said["BALLAST_LOG_LEVEL"],
    )


def _problems(environ: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in sorted(environ.items()):
        if name.startswith("BALLAST_") and name not in VARIABLES:
            suggestion = nearest(name.removeprefix("BALLAST_"), [known.removeprefix("BALLAST_") for known in VARIABLES])
            yield Problem(name, "", "unknown variable", suggestion and f"BALLAST_{suggestion}")
        if name in FORBIDDEN and value not in ("", "0"):
            yield Problem(name, value, f"{FORBIDDEN[name]}; unset it")
    host, port, log_level = environ.get("BALLAST_HOST"), environ.get("BALLAST_PORT"), environ.get("BALLAST_LOG_LEVEL")
    if host:
        try:
            listen_host(host)
        except ValueError as error:
            yield Problem("BALLAST_HOST", host, str(error))
    if port and not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        yield Problem("BALLAST_PORT", port, "must be a port, 1 to 65535")
    if log_level and log_level not in get_args(LogLevel):
        levels = list(get_args(LogLevel))
        yield Problem("BALLAST_LOG_LEVEL", log_level, f"must be one of {', '.join(levels)}", nearest(log_level, levels))
