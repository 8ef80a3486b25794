"""The README's blocks, as far as they can be judged without a server; tests/e2e/test_readme.py runs the others.

A block fenced as ``bash`` or ``python`` is for a running server; one fenced as ``sh`` changes the machine, or runs
until it is stopped, and is only looked at.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from serving.cli import parser
from tests.support.readme import ROOT, blocks

SHELL = [*blocks("sh"), *blocks("bash")]
MAKEFILE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
CONTINUATION = re.compile(r"\\\n\s*")


def commands() -> list[list[str]]:
    """Every simple command of every shell block, as words."""
    lines = [line for block in SHELL for line in CONTINUATION.sub(" ", block).splitlines()]
    simple = [part for line in lines for part in re.split(r"\s(?:&&|\|)\s", line)]
    return [words for part in simple if (words := shlex.split(part, comments=True))]


def test_the_readme_has_blocks_of_each_kind() -> None:
    assert blocks("sh")
    assert blocks("bash")
    assert blocks("python")


@pytest.mark.parametrize("block", SHELL)
def test_shell_blocks_are_shell(block: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=10, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_make_target_exists() -> None:
    targets = [word for words in commands() if words[0] == "make" for word in words[1:] if "=" not in word]
    assert {"serve", "test"} <= set(targets) <= MAKEFILE_TARGETS


def test_every_ballast_command_is_one() -> None:
    asked = [words[1:] for words in commands() if Path(words[0]).name == "ballast"]
    assert asked
    for arguments in asked:
        parser().parse_args(arguments)


def test_every_file_that_a_command_reads_is_there_or_was_written_by_one_before() -> None:
    written: set[str] = set()
    for words in commands():
        files = {word.partition("=")[2] or word for word in words[1:] if word.endswith((".yaml", ".py", ".txt", ".sh"))}
        made = set(words[words.index(">") + 1 :]) if ">" in words else set()
        assert [name for name in files - made - written if not (ROOT / name).exists()] == []
        written |= made
