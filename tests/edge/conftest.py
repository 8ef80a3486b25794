"""The config that Ray Serve writes, and HAProxy running on it as it does in production."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serving.cluster import EdgePorts, cluster_environment
from serving.config.server import ServerConfig
from tests.support import haproxy_config

PORT_NAMES = ("frontend", "gateway", "fallback", "stats", "metrics")


class Edge:
    """A folder with Ray's config and our launcher. ``ports`` are free ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "edge"
        self.ports = free_ports()
        self.environment = {
            **os.environ,
            **cluster_environment(folder, ServerConfig(), EdgePorts(self.ports["stats"], self.ports["metrics"], 1)),
        }
        self.config_path = Path(self.environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
        self.launcher = self.environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        self.socket_path = Path(self.environment["RAY_SERVE_HAPROXY_SOCKET_PATH"])
        self.config_path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, haproxy_config.__file__, json.dumps(self.ports)],
            env=self.environment, check=True, timeout=120, capture_output=True,
        )  # fmt: skip
        self.rays_config = self.config_path.read_text()


def free_ports() -> dict[str, int]:
    probes = [socket.socket() for _ in PORT_NAMES]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return dict(zip(PORT_NAMES, ports, strict=True))


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Edge:
    """One config for all tests: to write it means to import Ray."""
    return Edge(tmp_path_factory.mktemp("e"))
