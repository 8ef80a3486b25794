"""Kernels run on the GPU where there is one, else in Triton's interpreter (`tests/conftest.py` switches it on)."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _quiet_floats() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where a device gives an infinity or a NaN."""
    with np.errstate(all="ignore"):
        yield
