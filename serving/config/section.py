"""What every section of the config is: frozen, strict, closed to unknown keys, finite in its numbers."""

from pathlib import Path
from typing import Annotated, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


class Section(BaseModel):
    """A part of the config. A value of the wrong type is refused, never converted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Context(TypedDict):
    """What validators are told beside the values: the folder that relative paths in the file start from."""

    base_dir: Path


def resolve(path: str | Path, info: ValidationInfo) -> Path:
    """``path`` with ``~`` expanded; a relative one starts at the config file's folder. ValueError: not a path."""
    context: Context | None = info.context
    base_dir = context["base_dir"] if context else Path.cwd()
    if "\0" in str(path):
        raise ValueError("a path cannot hold a NUL character")
    try:
        return base_dir / Path(path).expanduser()
    except RuntimeError as error:  # ~somebody, and nobody of that name here
        raise ValueError(f"no such home folder: {path}") from error


def _resolved(value: object, info: ValidationInfo) -> object:
    return resolve(value, info) if isinstance(value, str | Path) else value


ConfigPath = Annotated[Path, BeforeValidator(_resolved)]
"""A path in the file: ``~`` is expanded and a relative one starts at the config file's folder."""

Port = Annotated[int, Field(ge=1, le=65535)]
ServedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]{1,128}$")]
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
ParserName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
