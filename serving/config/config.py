"""The whole config: one frozen value, and its JSON Schema."""

from pydantic import Field, JsonValue
from pydantic.json_schema import GenerateJsonSchema

from serving.config.autoscaler import AutoscalerConfig
from serving.config.limits import Limits
from serving.config.model import ModelConfig
from serving.config.section import Section
from serving.config.server import ServerConfig


class Config(Section):
    """Everything that one config file says."""

    server: ServerConfig = Field(
        default_factory=ServerConfig, description="Where Ballast listens, keeps state and how it stops."
    )
    autoscaler: AutoscalerConfig = Field(default=AutoscalerConfig(), description="How the pools are sized.")
    limits: Limits = Field(default=Limits(), description="Caps on what one request may ask.")
    models: tuple[ModelConfig, ...] = Field(min_length=1, strict=False, description="The models served. At least one.")

    @property
    def model_names(self) -> dict[str, ModelConfig]:
        """Every name and alias, and the model it stands for."""
        return {name: model for model in self.models for name in model.names}


class _Schema(GenerateJsonSchema):
    """Pydantic's schema without a title made from every key."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def json_schema() -> dict[str, JsonValue]:
    """JSON Schema (2020-12) of the file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(schema_generator=_Schema),
        "title": "Ballast configuration",
    }
