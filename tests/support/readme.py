"""The README's fenced blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The content of every block fenced as ``language``, in order."""
    return [text for name, text in _FENCE.findall((ROOT / "README.md").read_text()) if name == language]
