"""The models of this server as clients see them."""

import time
from collections.abc import Iterable

from serving.config.model import ModelConfig
from serving.errors import ModelNotFound
from serving.gateway import refusal
from serving.gateway.auth import Identity, check_model
from serving.gateway.endpoint import Endpoint
from serving.router.directory import Directory


class Catalog:
    """Names and aliases of the configured models, and the pages that list them."""

    def __init__(self, models: Iterable[ModelConfig], directory: Directory) -> None:
        self._models = {name: model for model in models for name in model.names}
        self._directory = directory
        self._created = int(time.time())

    def find(self, name: str, identity: Identity) -> ModelConfig:
        """Raises ModelNotFound, ModelNotAllowed."""
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"The model '{name[:128]}' does not exist.", param="model")
        check_model(identity, model.names)
        return model

    def max_model_len(self, model: ModelConfig) -> int | None:
        """Context in tokens as the running replicas say; None while none has said."""
        lengths = [replica.address.max_model_len for replica in self._directory.replicas(model.name)]
        return min(lengths) if lengths else model.max_model_len

    def as_list(self, identity: Identity) -> dict[str, object]:
        """The body of GET /v1/models: every name the key may use."""
        names = [name for name, model in self._models.items() if _may_use(identity, model)]
        return {"object": "list", "data": [self._entry(name) for name in names]}

    def as_object(self, name: str, identity: Identity) -> dict[str, object]:
        """The body of GET /v1/models/{id}. Raises ModelNotFound, also for a model the key may not use."""
        model = self._models.get(name)
        if model is None or not _may_use(identity, model):
            raise ModelNotFound(f"The model '{name[:128]}' does not exist.", param="model")
        return self._entry(name)

    def _entry(self, name: str) -> dict[str, object]:
        model = self._models[name]
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "ballast",
            "root": model.name,
            "max_model_len": self.max_model_len(model),
        }


def _may_use(identity: Identity, model: ModelConfig) -> bool:
    return identity.models is None or any(name in identity.models for name in model.names)


def check_task(model: ModelConfig, endpoint: Endpoint) -> None:
    """Raises BadRequest when ``endpoint`` asks a model for what it was not made for. Both kinds have a tokenizer."""
    if endpoint in (Endpoint.TOKENIZE, Endpoint.DETOKENIZE):
        return
    if model.task == "generate" and endpoint is Endpoint.EMBEDDINGS:
        raise refusal.unsupported_value("model", model.name, "it generates text and gives no embeddings")
    if model.task == "embed" and endpoint is not Endpoint.EMBEDDINGS:
        raise refusal.unsupported_value("model", model.name, "it gives embeddings and generates no text")
