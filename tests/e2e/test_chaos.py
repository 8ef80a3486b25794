"""`ballast bench chaos` on a whole server, its engine scripted: what it breaks and changes costs no request."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.faults.stage import QUICK, Stage
from benchmarks.runs import document as documents
from benchmarks.server import running
from serving.cli import main
from tests.benchmarks.conftest import GENEROUS
from tests.e2e.test_apply import MODEL, SCRIPT, config, pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SECONDS = 20


def test_a_killed_replica_and_a_smaller_pool_lose_no_request(tmp_path: Path) -> None:
    with running(config(pool("main", 2, 2)), "--engine", "scripted", "--engine-args", json.dumps(SCRIPT)) as server:
        assert asyncio.run(Stage(server, QUICK, MODEL, 8).until(lambda: len(server.replicas(MODEL)) == 2, 60.0)) < 60.0
        replicas = {replica["pid"] for replica in server.replicas(MODEL)}
        faults = ("--at", "4s=kill-replica", "--at", "12s=scale:main=1", "--max-recovery", "10s")
        load = ("--rate", "4", "--duration", f"{SECONDS}s", "--slo", "ttft=10s", *GENEROUS)
        given = ("--config", str(server.state_dir.parent / "ballast.yaml"), *faults, *load, "--out", str(tmp_path))
        assert main(["bench", "chaos", *given]) == 0
        found = documents.read(tmp_path).document["rounds"][0]
        kill, scale = found["marks"]
        assert kill["pid"] in replicas
        assert scale["what"].startswith(f"models[{MODEL}].pools[main].replicas")
        assert found["requests"]["num_error"] == 0
        assert found["server"]["server_ttft_ms"]["n"] > SECONDS
        asyncio.run(Stage(server, QUICK, MODEL, 8).until(lambda: len(server.replicas(MODEL)) == 1, 60.0))
        assert len(server.replicas(MODEL)) == 1
