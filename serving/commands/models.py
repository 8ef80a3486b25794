"""``ballast models``: the models of a config, where they run and what they cost."""

import json
from argparse import Namespace
from dataclasses import asdict

from rich.table import Table

from models.spec import ModelSpec
from serving.commands.console import console
from serving.commands.settings import load_settings
from serving.config.model import ModelConfig
from serving.plan import Specs, gigabytes, read_specs


def run(arguments: Namespace) -> int:
    _, config = load_settings(arguments)
    specs = read_specs(config)
    if arguments.json:
        print(json.dumps([_as_json(model, specs) for model in config.models]))
        return 0
    table = Table(
        "Model",
        "Also",
        "Source",
        "Weights",
        "Context",
        "Pool",
        "Device",
        "Replicas",
        "USD/hour",
        box=None,
        pad_edge=False,
    )
    for model in config.models:
        spec = _spec(model, specs)
        weights = "unknown" if spec is None else gigabytes(spec.weight_bytes)
        facts = (
            model.name,
            ", ".join(model.aliases),
            model.source,
            weights,
            str(_context_tokens(model, spec) or "unknown"),
        )
        for position, pool in enumerate(model.pools):
            bounds = f"{pool.replicas.min} to {pool.replicas.max}"
            table.add_row(
                *(facts if position == 0 else ("",) * 5), pool.name, pool.device, bounds, f"{pool.usd_per_hour:g}"
            )
    console().print(table)
    return 0


def _as_json(model: ModelConfig, specs: Specs) -> dict[str, object]:
    spec, problem = _spec(model, specs), specs.get(model.name)
    return {
        "name": model.name,
        "aliases": model.aliases,
        "source": model.source,
        "revision": model.revision,
        "task": model.task,
        "context_tokens": _context_tokens(model, spec),
        "spec": None if spec is None else asdict(spec),
        "problem": str(problem) if isinstance(problem, Exception) else None,
        "pools": [
            {
                "name": pool.name,
                "device": pool.device,
                "min_replicas": pool.replicas.min,
                "max_replicas": pool.replicas.max,
                "usd_per_hour": pool.usd_per_hour,
            }
            for pool in model.pools
        ],
    }


def _spec(model: ModelConfig, specs: Specs) -> ModelSpec | None:
    found = specs.get(model.name)
    return found if isinstance(found, ModelSpec) else None


def _context_tokens(model: ModelConfig, spec: ModelSpec | None) -> int | None:
    return model.max_model_len or (spec.max_position_embeddings if spec else None)
