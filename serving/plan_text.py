"""A plan for a person at a terminal, and for a script."""

from collections.abc import Sequence
from dataclasses import asdict

from serving.machine import Machine
from serving.plan import ModelPlan, Plan, PoolPlan, gigabytes

Json = dict[str, object]

_HEADINGS = ("pool", "replicas", "each on", "memory each", "KV cache each", "USD/hour")


def render_plan(plan: Plan) -> str:
    """The plan as a few short tables, errors last, where the eye ends."""
    low, high = plan.usd_per_hour
    parts = [
        *(_model_text(model) for model in plan.models),
        "\n".join(
            (
                f"this machine   {_machine_text(plan.machine)}",
                f"smallest fleet {_need_text(plan)}",
                f"cost           {low:.2f} to {high:.2f} USD an hour",
            )
        ),
    ]
    findings = [
        f"{finding.severity}: {finding.path}: {finding.message}\n  -> {finding.action}"
        for finding in reversed(plan.findings)
    ]
    return "\n\n".join(parts + (["\n".join(findings)] if findings else []))


def plan_as_json(plan: Plan) -> Json:
    """The plan as JSON values: every field, with the derived totals."""
    low, high = plan.usd_per_hour
    machine = asdict(plan.machine)
    machine["unusable_endpoints"] = {
        f"{host}:{port}": why for (host, port), why in plan.machine.unusable_endpoints.items()
    }
    return {
        "can_start": not plan.errors,
        "machine": machine,
        "models": [asdict(model) for model in plan.models],
        "base_memory_bytes": plan.base_memory_bytes,
        "min_memory_bytes": plan.min_memory_bytes,
        "min_cpus": plan.min_cpus,
        "min_gpus": plan.min_gpus,
        "min_usd_per_hour": low,
        "max_usd_per_hour": high,
        "findings": [asdict(finding) for finding in plan.findings],
    }


def _model_text(model: ModelPlan) -> str:
    names = model.name + (f" (also {', '.join(model.aliases)})" if model.aliases else "")
    facts = [model.source]
    if model.spec:
        facts += [model.spec.architecture, f"{gigabytes(model.spec.weight_bytes)} of weights ({model.spec.dtype})"]
    if model.max_model_len:
        facts.append(f"context of {model.max_model_len} tokens")
    rows = [_HEADINGS, *(_pool_row(pool) for pool in model.pools)]
    return "\n".join((names, f"  {', '.join(facts)}", *_table(rows)))


def _pool_row(pool: PoolPlan) -> tuple[str, ...]:
    count, unit = (pool.cpus, "CPU core") if pool.device == "cpu" else (pool.gpus, "GPU")
    kv_cache = "unknown" if pool.kv_cache_bytes is None else gigabytes(max(0, pool.kv_cache_bytes))
    if pool.kv_cache_tokens is not None:
        kv_cache += f", {pool.kv_cache_tokens} tokens"
    return (
        pool.pool,
        f"{pool.min_replicas} to {pool.max_replicas}",
        _counted(count, unit),
        "unknown" if pool.memory_bytes is None else gigabytes(pool.memory_bytes),
        kv_cache,
        f"{pool.min_usd_per_hour:.2f} to {pool.max_usd_per_hour:.2f}",
    )


def _counted(count: float, unit: str) -> str:
    return f"{count:g} {unit}{'' if count == 1 else 's'}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip() for row in rows
    ]


def _machine_text(machine: Machine) -> str:
    gpus = ", ".join(f"{gpu.name} with {gigabytes(gpu.memory_bytes)}" for gpu in machine.gpus) or "no GPU"
    total, available = gigabytes(machine.total_memory_bytes), gigabytes(machine.available_memory_bytes)
    return f"{_counted(machine.num_cpus, 'CPU core')}, {total} of memory ({available} free), {gpus}"


def _need_text(plan: Plan) -> str:
    base = gigabytes(plan.base_memory_bytes)
    gpus = f", {_counted(plan.min_gpus, 'GPU')}" if plan.min_gpus else ""
    cpus, memory = _counted(plan.min_cpus, "CPU core"), gigabytes(plan.min_memory_bytes)
    return f"{cpus}, {memory} of memory ({base} for gateways and Ray){gpus}"
