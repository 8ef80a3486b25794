"""What passes between `ballast up` and the process that holds Ray: what to start, and what happens, one JSON line each.

Ray lives in a process of its own, so that the terminal, signals and clean-up never wait for it, and nothing of it is
loaded before it is wanted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

from serving.config import Config


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. ``engine_args`` of None leaves them to the config."""

    config: Config
    runtime_dir: str
    engine: str = "vllm"
    engine_args: Mapping[str, Any] | None = None

    def encode(self) -> bytes:
        parts = {"runtime_dir": self.runtime_dir, "engine": self.engine, "engine_args": self.engine_args}
        return orjson.dumps({**parts, "config": self.config.model_dump(mode="json")})

    @classmethod
    def decode(cls, data: bytes) -> "Launch":
        parts = orjson.loads(data)
        return cls(**{**parts, "config": Config.model_validate(parts["config"])})


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """One pool or the gateway, as Ray Serve sees it. ``label`` is ``model/pool`` or ``gateway``, ``message`` Ray
    Serve's word on what it waits for."""

    name: str
    label: str
    status: str
    num_running: int
    num_starting: int
    message: str

    @property
    def is_healthy(self) -> bool:
        return self.status == "HEALTHY"

    @property
    def has_failed(self) -> bool:
        """True from the first failed attempt on; Ray Serve itself would make three."""
        return self.status in ("DEPLOY_FAILED", "UNHEALTHY") or "failed to start" in self.message


@dataclass(frozen=True, slots=True)
class Rollout:
    """Ray Serve's word on the application: whether all of it is what was deployed last."""

    status: str
    message: str

    @property
    def is_done(self) -> bool:
        return self.status == "RUNNING"

    @property
    def has_failed(self) -> bool:
        return self.status == "DEPLOY_FAILED"


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step of the start begins."""

    step: str
    kind: Literal["step"] = "step"


@dataclass(frozen=True, slots=True)
class DeploymentsEvent:
    """All deployments, sent again when one of them has changed."""

    deployments: tuple[DeploymentState, ...]
    kind: Literal["deployments"] = "deployments"


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The server cannot run. The process ends after this."""

    message: str
    exit_code: int
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class ConfigEvent:
    """Another config is on its way or, when ``is_settled``, in force or given up: in words."""

    message: str
    is_settled: bool
    kind: Literal["config"] = "config"


Event = StepEvent | DeploymentsEvent | FailedEvent | ConfigEvent


def encode_event(event: Event) -> bytes:
    return orjson.dumps(asdict(event)) + b"\n"


def decode_event(line: bytes) -> Event:
    match orjson.loads(line):
        case {"kind": "step", "step": step}:
            return StepEvent(step)
        case {"kind": "config", "message": message, "is_settled": is_settled}:
            return ConfigEvent(message, is_settled)
        case {"kind": "failed", "message": message, "exit_code": exit_code}:
            return FailedEvent(message, exit_code)
        case {"kind": "deployments", "deployments": deployments}:
            return DeploymentsEvent(tuple(DeploymentState(**entry) for entry in deployments))
        case other:
            raise AssertionError(f"no such event: {other}")
