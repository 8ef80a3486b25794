"""One server for the whole session, and the official clients connected to it."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio

from benchmarks.faults.fault import HEAD
from tests.e2e.server import Server, running_server
from tests.e2e.table import ROWS

#: What starts servers of its own comes first, so that no two run at once; what breaks the shared one comes last.
_ORDER = {"test_lifecycle.py": 0, "test_failover.py": 0, "test_faults.py": 0, "test_failures.py": 2}
CLIENT_TIMEOUT_S = 60.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: _ORDER.get(item.path.name, 1) if item.path.is_relative_to(here) else -1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of faults, whatever else is shown of tests that passed."""
    if ROWS:
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join([HEAD, *ROWS]))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A short name: Unix sockets lie in it, and their paths have at most 107 characters.
    runtime_dir = Path(tempfile.mkdtemp(prefix="ballast-"))
    state_dir = tmp_path_factory.mktemp("state")
    state_dir.chmod(0o700)
    with running_server(runtime_dir, state_dir) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=CLIENT_TIMEOUT_S
    ) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=CLIENT_TIMEOUT_S
    ) as client:
        yield client


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client, which sends the key in ``x-api-key``."""
    with anthropic.Anthropic(
        base_url=server.url, api_key=server.key, max_retries=0, timeout=CLIENT_TIMEOUT_S
    ) as client:
        yield client


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=CLIENT_TIMEOUT_S, trust_env=False) as client:
        yield client
