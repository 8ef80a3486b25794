"""A served model: its names, where its weights are, what it promises, and the pools that serve it."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from serving.config.pool import Pool
from serving.config.section import ConfigPath, ParserName, Section, ServedName, resolve

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_PATH_STARTS = ("/", "./", "../", "~")


def _source(value: str, info: ValidationInfo) -> str:
    """An existing folder as an absolute path; else the value itself, which must then look like a Hub id."""
    folder = resolve(value, info)
    if value and os.path.isdir(folder):  # os.path, because Path.is_dir raises on a name that is too long
        return str(folder.resolve())
    if value.startswith(_PATH_STARTS):
        raise ValueError(f"no such folder: {folder}")
    if not _HUB_ID.fullmatch(value):
        raise ValueError("neither a folder that exists here nor a Hub id (`owner/name`)")
    return value


def _file(value: Path) -> Path:
    if not os.path.isfile(value):
        raise ValueError(f"no such file: {value}")
    return value


class Slo(Section):
    """Latency that the fleet is sized for."""

    ttft_s: float = Field(default=2.0, gt=0, le=3600, description="Seconds to the first token.")
    tpot_s: float = Field(default=0.1, gt=0, le=60, description="Seconds per output token after the first.")
    objective: float = Field(
        default=0.99, ge=0.5, lt=1, description="Share of requests that must meet both. The rest is the error budget."
    )
    shed: bool = Field(
        default=False, description="Refuse (503) what can no longer get its first token in time; else serve it late."
    )


class Cost(Section):
    """What the operator is willing to pay."""

    target_usd_per_million_tokens: float | None = Field(
        default=None, gt=0, le=1e6, description="Price per million tokens to aim for."
    )
    max_usd_per_hour: float | None = Field(
        default=None, gt=0, le=1e6, description="Ceiling over all pools of this model."
    )


class ModelConfig(Section):
    """One model that clients can name."""

    name: ServedName = Field(description="Name that clients send as `model`.")
    aliases: tuple[ServedName, ...] = Field(default=(), strict=False, description="Other names for the same model.")
    source: Annotated[str, AfterValidator(_source)] = Field(
        description="Folder of the model (relative to this file), or a Hub id `owner/name`."
    )
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,128}$")] | None = Field(
        default=None, description="Commit, tag or branch of a Hub id. Pin a commit."
    )
    task: Literal["generate", "embed"] = Field(default="generate", description="What the model is for.")
    max_model_len: int | None = Field(
        default=None,
        ge=16,
        le=10_000_000,
        description="Context in tokens, prompt and output together; null: the model's own.",
    )
    chat_template: Annotated[ConfigPath, AfterValidator(_file)] | None = Field(
        default=None, description="Jinja file that replaces the model's own chat template."
    )
    chat_template_kwargs: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], ...] = Field(
        default=(), strict=False, description="Keys of `chat_template_kwargs` that clients may set; others are refused."
    )
    tool_call_parser: ParserName | None = Field(
        default=None, description="vLLM's name of the tool-call format; null: no tools."
    )
    reasoning_parser: ParserName | None = Field(
        default=None, description="vLLM's name of the reasoning format; null: none."
    )
    slo: Slo = Field(default=Slo(), description="Latency that the fleet is sized for.")
    cost: Cost = Field(default=Cost(), description="What the operator is willing to pay.")
    pools: tuple[Pool, ...] = Field(min_length=1, strict=False, description="Where it runs. At least one pool.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task == "embed" and (self.tool_call_parser or self.reasoning_parser):
            raise ValueError("a model with task `embed` generates no text, so it takes no parser")
        if self.folder and self.revision:
            raise ValueError("revision is for Hub ids; a folder has none")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a client may use, the canonical one first."""
        return (self.name, *self.aliases)

    @property
    def folder(self) -> Path | None:
        """The model's folder on this machine; None for a Hub id."""
        return Path(self.source) if Path(self.source).is_absolute() else None
