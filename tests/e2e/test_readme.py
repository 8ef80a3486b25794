"""The README's blocks that need a running server, run as they stand but for the port and the key."""

import json
import subprocess
import sys

import pytest

from tests.e2e.server import ROOT, Server
from tests.support.readme import blocks

CURL_BLOCKS = [block for block in blocks("bash") if block.startswith("curl ")]
README_URL = "http://127.0.0.1:8000"


def adapted(block: str, server: Server) -> str:
    """For this server, which has keys, where the README's has none yet."""
    assert README_URL in block
    block = block.replace(README_URL, server.url).replace('api_key="none"', f'api_key="{server.key}"')
    return block.replace("curl ", f"curl --silent --fail-with-body -H 'Authorization: Bearer {server.key}' ")


@pytest.mark.parametrize("block", CURL_BLOCKS)
def test_a_curl_call_is_answered(server: Server, block: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", adapted(block, server)], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_example_runs_and_prints_an_answer(server: Server, block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", adapted(block, server)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
