"""Order of the whole run: quick tests first, so that a plain mistake shows before an engine has started."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

if not Path("/dev/nvidiactl").exists():
    # Without a GPU, Triton's kernels run in its interpreter. That is settled when Triton is imported and again when a
    # kernel is defined; the variable goes away between the two, because engines that tests start inherit it.
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language

    del os.environ["TRITON_INTERPRET"]
    triton.knobs.propagate_env = False
    triton.knobs.runtime.interpret = True

# How long an example takes says more of what else runs on the machine than of the code.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

_E2E = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything under tests/e2e as e2e, and run it last; what loads an engine's libraries comes just before."""
    for item in items:
        if item.path.is_relative_to(_E2E):
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("e2e", "engine")])
