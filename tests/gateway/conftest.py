"""Fixtures of the tests that run the whole request path (tests/support/stack.py)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, start_stack


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A gateway over one scripted engine."""
    async with start_stack(tmp_path) as started:
        yield started
