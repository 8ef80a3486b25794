"""Which config a command works on: options over environment over file."""

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

import serving
from serving.config import Config, Environment, load_config, read_environment

DEFAULT_NAME = "ballast.yaml"


def config_path(option: str | None, environment: Environment) -> Path:
    """``--config``, else $BALLAST_CONFIG, else ./ballast.yaml, else the one that comes with Ballast."""
    if option is not None:
        return Path(option)
    if environment.config is not None:
        return environment.config
    here = Path(DEFAULT_NAME)
    return here if here.exists() else Path(str(serving.__file__)).parent.parent / DEFAULT_NAME


def load_settings(arguments: Namespace) -> tuple[Path, Config]:
    """The config's path and the config. Raises ConfigError, which carries every problem at once."""
    environment = _environment(arguments)
    path = config_path(arguments.config, environment)
    return path, load_config(path, environment)


def load_file(arguments: Namespace) -> tuple[Path, Config]:
    """As `load_settings`, for a server that runs: what options and environment say here is not its affair, but for
    where config and state folder are.
    """
    environment = _environment(arguments)
    path = config_path(arguments.config, environment)
    return path, load_config(path, Environment(state_dir=environment.state_dir))


def overrides(arguments: Namespace) -> dict[str, JsonValue]:
    """Keys of the config's ``server`` that options or environment say instead of the file. Raises ConfigError."""
    return {str(key): value for (_, key), value in _environment(arguments).overrides.items()}


def _environment(arguments: Namespace) -> Environment:
    environment = read_environment(os.environ)
    options = {name: getattr(arguments, name, None) for name in ("host", "port", "admin_port")}
    return replace(environment, **{name: value for name, value in options.items() if value is not None})
