"""What one replica is started with: plain frozen values, so that they pickle and a change of any of them is a new
version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.config.speed import CPU_SPEED, GUESS_STEPS
from serving.lifecycle import zygote
from serving.protocol.frames import StepSpeed


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """A pool's replicas are all started with the same options.

    Args:
        model: the model's name; ``served_names`` is that name and its aliases.
        pool: the pool's name.
        source: a local folder or a Hub id.
        engine: ``vllm``, ``scripted``, or ``module:function`` that takes these options and returns an ``Engine``.
        engine_args: arguments for that engine (``VllmOptions.args``, or fields of ``Script``).
        runtime_dir: folder for Unix sockets, owner-only.
        secret: the cluster's shared secret.
        drain_s: seconds that open streams get to finish when the replica stops.
        watchdog_s: seconds that one step of the engine may take.
        version: short hash of everything above that changes answers; clients see it.
        model_version: the same of the model alone, whatever the pool.
        grammar_compile_s: seconds of processor time in which a client's constraint must become a grammar.
        speed: what an engine step costs, before this engine was measured; worth ``speed_steps`` measured steps.
        listen_host: address for gateways on other nodes; None when all run on one.
        is_forked: the engine runs in a process forked from the node's zygote, instead of in Ray's worker process.
    """

    model: str
    served_names: tuple[str, ...]
    pool: str
    source: str
    engine: str
    runtime_dir: str
    secret: bytes
    drain_s: float
    watchdog_s: float
    version: str
    log_level: str
    log_path: str
    grammar_compile_s: float
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    speed: StepSpeed = CPU_SPEED
    speed_steps: float = GUESS_STEPS
    listen_host: str | None = None
    is_forked: bool = False
    model_version: str = ""

    @property
    def zygote_path(self) -> Path | None:
        """Where the zygote listens that forks what this replica runs in; None where nothing is forked."""
        return Path(self.runtime_dir) / zygote.SOCKET if self.is_forked else None
