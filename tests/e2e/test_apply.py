"""`ballast apply` on a server under steady traffic: what it changes is in force, and no request is lost.

With the scripted engine, because what is tested is everything around it.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.load.traffic import Driver, Due, Run
from benchmarks.server import RunningServer, running

ROOT = Path(__file__).parents[2]
MODEL = "demo"
SCRIPT = {"prefill_s": 0.05, "step_s": 0.02, "max_num_seqs": 8, "max_model_len": 4096}
OUTPUT_TOKENS = 50
RATE_PER_S = 4.0
LEAD_S, TAIL_S = 2.0, 4.0
"""Traffic before and after what is applied."""
APPLY_TIMEOUT_S = 120.0
NEVER_UP_S = 10.0

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

Json = dict[str, Any]


def pool(name: str, least: int, most: int, **fields: object) -> Json:
    base: Json = {"name": name, "device": "cpu", "cpus_per_replica": 0.1, "usd_per_hour": 0.1}
    return base | {"replicas": {"min": least, "max": most}, "engine": {"kv_cache_gib": 0.1}} | fields


def config(*pools: Json, **limits: object) -> Json:
    source = str(ROOT / "models" / "demo")
    return {
        "server": {"shutdown_grace_s": 8.0},
        "limits": limits,
        "models": [{"name": MODEL, "source": source, "pools": list(pools)}],
    }


@dataclass
class Live:
    """A running server, and its config file."""

    server: RunningServer

    @property
    def path(self) -> Path:
        return self.server.state_dir.parent / "ballast.yaml"

    def write(self, config: Json) -> None:
        """Change the file; where the server listens and keeps its state stays."""
        server = yaml.safe_load(self.path.read_text())["server"]
        self.path.write_text(yaml.safe_dump({**config, "server": server}))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "serving.cli", *words, "--config", str(self.path)]

    def status(self) -> Json:
        done = subprocess.run(self.command("status", "--json"), capture_output=True, text=True, check=False)
        found: Json = json.loads(done.stdout)
        return found

    def replicas(self) -> dict[str, str]:
        """The pool of each replica that takes requests."""
        return {one["replica"]: one["pool"] for one in self.server.status()["replicas"] if one["ready"]}

    async def apply_under_traffic(self, *options: str) -> tuple[int, list[Json], Run]:
        """Exit code and words of `ballast apply`, and what became of the requests meanwhile."""
        driver = Driver(self.server.port, MODEL, keeps_text=True)
        traffic = asyncio.create_task(self._steady(driver))
        await asyncio.sleep(LEAD_S)
        process = await asyncio.create_subprocess_exec(
            *self.command("apply", "--yes", "--json", *options), stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        output, _ = await process.communicate()
        await asyncio.sleep(TAIL_S)
        traffic.cancel()
        await asyncio.gather(*self._under_way)
        assert process.returncode is not None
        return process.returncode, [json.loads(line) for line in output.splitlines()], driver.run

    async def _steady(self, driver: Driver) -> None:
        self._under_way: list[asyncio.Task[Any]] = []
        while True:
            due = Due(driver.run.now_s, f"Count from {len(self._under_way) % 8}.", OUTPUT_TOKENS)
            self._under_way.append(asyncio.create_task(driver.send(due)))
            await asyncio.sleep(1.0 / RATE_PER_S)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    words = ("--engine", "scripted", "--engine-args", json.dumps(SCRIPT))
    with running(config(pool("main", 2, 2)), *words) as server:
        yield Live(server)


def assert_nothing_is_lost(run: Run) -> None:
    expected = "".join(f"w{index} " for index in range(OUTPUT_TOKENS))
    assert len(run.sent) > RATE_PER_S * (LEAD_S + TAIL_S)
    assert [sent.error for sent in run.failed] == []
    assert {sent.text for sent in run.sent} == {expected}


def kinds(events: Sequence[Json]) -> set[str]:
    return {event.get("event", "error") for event in events}


async def test_a_changed_pool_and_a_changed_limit_lose_no_request(live: Live) -> None:
    before, version = live.replicas(), live.status()["config"]["version"]
    live.write(config(pool("main", 3, 3, engine={"kv_cache_gib": 0.1, "seed": 7}), max_n=1))
    code, events, run = await live.apply_under_traffic("--timeout", str(APPLY_TIMEOUT_S))
    assert (code, kinds(events)) == (0, {"change", "step", "applied"}), events[-1]
    assert_nothing_is_lost(run)
    assert not set(before) & set(live.replicas()), "every replica was replaced"
    assert live.status()["config"]["version"] == events[0]["new_version"] != version
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "n": 2}
    url = f"http://127.0.0.1:{live.server.port}/v1/chat/completions"
    refused = await asyncio.to_thread(httpx.post, url, json=body, timeout=10, trust_env=False)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


async def test_what_only_the_autoscaler_reads_replaces_nothing(live: Live) -> None:
    before = live.replicas()
    data = yaml.safe_load(live.path.read_text())
    data["models"][0]["pools"][0]["usd_per_hour"] = 0.3
    live.write(data)
    code, events, run = await live.apply_under_traffic("--timeout", str(APPLY_TIMEOUT_S))
    assert code == 0, events[-1]
    assert_nothing_is_lost(run)
    assert live.replicas() == before


async def test_other_bounds_leave_the_replicas_that_there_are(live: Live) -> None:
    """How many of them are needed is for the autoscaler to say, when it has seen enough."""
    before = live.replicas()
    assert len(before) == 3
    data = yaml.safe_load(live.path.read_text())
    data["models"][0]["pools"][0]["replicas"] = {"min": 1, "max": 4}
    live.write(data)
    code, events, run = await live.apply_under_traffic("--timeout", str(APPLY_TIMEOUT_S))
    assert code == 0, events[-1]
    assert_nothing_is_lost(run)
    assert live.replicas() == before


async def test_a_pool_takes_the_place_of_another(live: Live) -> None:
    live.write(config(pool("other", 2, 2)))
    code, events, run = await live.apply_under_traffic("--timeout", str(APPLY_TIMEOUT_S))
    assert code == 0, events[-1]
    assert_nothing_is_lost(run)
    assert set(live.replicas().values()) == {"other"}


async def test_what_does_not_come_up_goes_back(live: Live) -> None:
    """A replica whose interpreter ends at once never tells of itself."""
    version = live.status()["config"]["version"]
    live.write(config(pool("other", 2, 2), pool("mute", 1, 1, python="/bin/false")))
    code, events, run = await live.apply_under_traffic("--timeout", str(NEVER_UP_S))
    assert code == 3
    assert "demo/mute" in events[-1]["error"]["message"]
    assert "is in force" in events[-1]["error"]["message"]
    assert_nothing_is_lost(run)
    assert set(live.replicas().values()) == {"other"}
    assert live.status()["config"]["version"] == version
