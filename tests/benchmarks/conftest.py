"""A server whose latencies are known, in the test's own event loop."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Never

import orjson
import pytest

from benchmarks.load.drive import Drive, Manner
from benchmarks.load.null_server import Manners, NullServer
from benchmarks.load.prompts import Speech
from benchmarks.load.record import Recorder
from benchmarks.load.schedule import Schedule
from benchmarks.load.target import parse_target

Row = dict[str, Any]
GENEROUS = ("--max-delay-ms", "60000", "--prompt-tokens", "20", "--output-tokens", "5", "--workers", "2")
"""Options of a run whose speed is not what is tested, whatever else runs on the machine."""

Driven = Callable[..., Awaitable[list[Row]]]


@pytest.fixture
async def drive(tmp_path: Path) -> AsyncIterator[Driven]:
    """Sends a schedule to a `NullServer` and returns the lines that were written."""
    servers: list[NullServer] = []

    async def drive_(
        schedule: Schedule,
        manners: Manners | None = None,
        manner: Manner | None = None,
        server: NullServer | None = None,
        speech: Speech | None = None,
    ) -> list[Row]:
        servers.append(server or NullServer(manners or Manners()))
        target = parse_target(f"http://127.0.0.1:{await servers[-1].listen()}")
        with (tmp_path / "rows.jsonl").open("wb") as file:
            recorder = Recorder(file)
            await Drive(target, speech or Speech("null", 1), manner or Manner(), recorder).run(
                schedule, time.monotonic()
            )
        return [orjson.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()]

    yield drive_
    for server in servers:
        server.close()


def interrupted(*_: object) -> Never:
    """In place of what Ctrl-C is to end."""
    raise KeyboardInterrupt


def start_null_server(manners: Manners) -> "tuple[subprocess.Popen[bytes], int]":
    """In a process of its own, which the caller ends; and its port."""
    options = [part for name, value in asdict(manners).items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.load.null_server", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(orjson.loads(process.stdout.readline())["port"])


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """A server in a process of its own, quick and never refusing."""
    yield from served(Manners(first_s=0.002, step_s=0.001))


def served(manners: Manners) -> Iterator[str]:
    process, port = start_null_server(manners)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()
