"""From a file to a Config, or to every reason why not."""

from functools import cache
from pathlib import Path

from pydantic import JsonValue, ValidationError

from serving.config.config import Config, json_schema
from serving.config.document import read_document
from serving.config.environment import Environment
from serving.config.findings import KeyMap, problems_of, repeated_names
from serving.config.problem import FileProblem, config_error
from serving.config.section import Context
from serving.errors import Problem


def load_config(path: Path, environment: Environment = Environment()) -> Config:
    """Read the config file at ``path``. Raises ConfigError, which carries every problem at once."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise config_error(str(path), [Problem("", "", "no such file; name another with --config")]) from error
    except OSError as error:
        raise config_error(str(path), [Problem("", "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise config_error(str(path), [Problem("", "", f"not UTF-8 (byte {error.start})")]) from error
    return parse_config(text, path.absolute().parent, environment, origin=str(path))


def parse_config(
    text: str,
    base_dir: Path,
    environment: Environment = Environment(),
    *,
    origin: str = "config",
) -> Config:
    """Read config ``text``, ``origin`` in messages; its relative paths start at ``base_dir``. Raises ConfigError."""
    document = read_document(text, origin)
    context: Context = {"base_dir": base_dir}
    problems: list[FileProblem] = [*document.problems, *repeated_names(document.data, document.lines)]
    try:
        config = Config.model_validate(_overridden(document.data, environment), context=context)
    except ValidationError as error:
        problems += problems_of(error, _key_map(), document.lines)
        problems.sort(key=lambda problem: problem.line or 0)
        raise config_error(origin, problems) from error
    if problems:
        raise config_error(origin, problems)
    return config


def _overridden(data: dict[str, JsonValue], environment: Environment) -> dict[str, JsonValue]:
    """``data`` with the environment's values in the ``server`` section."""
    server = data.get("server", {})
    overrides = environment.overrides
    if not overrides or not isinstance(server, dict):
        return data
    return {**data, "server": server | {str(location[-1]): value for location, value in overrides.items()}}


@cache
def _key_map() -> KeyMap:
    return KeyMap(json_schema())
