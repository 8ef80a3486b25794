"""What the process's own metrics say."""

from prometheus_client import REGISTRY


def metric(name: str, **labels: str) -> float:
    """Zero for a series that does not exist yet."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
