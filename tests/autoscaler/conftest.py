"""Worlds for the policy to act in."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.autoscaler.world import SPEC, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def world_of() -> Callable[..., World]:
    """A world whose spec differs from the reference."""

    def make(**changes: object) -> World:
        return World(replace(SPEC, **changes))  # type: ignore[arg-type]

    return make
