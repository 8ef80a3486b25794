"""Writes the HAProxy config that the installed Ray Serve would write for one gateway.

A program of its own, because Ray is slow to import.
"""

import json
import sys
from typing import Any


def main(ports: dict[str, int]) -> None:
    """``frontend`` is the public port, ``gateway`` the gateway's, ``fallback`` that of Ray's own proxy.

    Paths come from the environment, as in production.
    """
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    http: Any = HTTPOptions(host="127.0.0.1", port=ports["frontend"])
    backend = BackendConfig(
        name="ballast",
        path_prefix="/",
        app_name="ballast",
        http_health_check_path="/health",
        servers=[ServerConfig("gateway", "127.0.0.1", ports["gateway"])],
        fallback_server=ServerConfig("fallback", "127.0.0.1", ports["fallback"]),
    )
    config = HAProxyConfig(http_options=http, has_received_routes=True, has_received_servers=True)
    HAProxyApi(config, {"ballast": backend})._generate_config_file_internal()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
