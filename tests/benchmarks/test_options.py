"""The options of a run come to a target, and to the account of the server that load goes to and of no other."""

import os
from pathlib import Path

import pytest

from benchmarks.runs.options import is_at, make_plan, own_target, span_s
from benchmarks.runs.serve import parser
from benchmarks.runs.watcher import Source
from serving.lifecycle.processes import start_ticks
from serving.lifecycle.record import ServerRecord

CONFIG = """
server: {{port: 1, state_dir: {folder}}}
models:
  - name: "null"
    source: {folder}
    pools: [{{name: cpu, device: cpu, cpus_per_replica: 1, usd_per_hour: 0.1}}]
"""


def record(host: str) -> ServerRecord:
    """Of this very process."""
    return ServerRecord(os.getpid(), start_ticks(os.getpid()) or 0, host, 8000, 1, "", 0.0, "")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/v1"), ("0.0.0.0", "http://127.0.0.1:8000/v1"),
        ("::1", "http://[::1]:8000/v1"), ("::", "http://[::1]:8000/v1"), ("10.0.0.7", "http://10.0.0.7:8000/v1"),
    ],
)  # fmt: skip
def test_a_running_server_is_found_at_an_address_that_can_be_called(host: str, url: str) -> None:
    assert own_target(record(host)).url == url


@pytest.mark.parametrize(
    ("host", "url", "found"),
    [
        ("127.0.0.1", None, True), ("127.0.0.1", "http://127.0.0.1:8000", True),
        ("0.0.0.0", "http://localhost:8000/v1/", True), ("::", "http://[::1]:8000/v1", True),
        ("127.0.0.1", "http://127.0.0.1:9000", False), ("127.0.0.1", "https://127.0.0.1:8000", False),
        ("10.0.0.7", "http://localhost:8000", False),
    ],
)  # fmt: skip
def test_a_url_leads_to_the_configs_server_or_to_another(host: str, url: str | None, found: bool) -> None:
    assert is_at(url, record(host)) is found


def test_a_config_gives_another_server_prices_and_no_metrics_of_its_own(url: str, tmp_path: Path) -> None:
    path = tmp_path / "ballast.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    tmp_path.chmod(0o700)
    record("127.0.0.1").write(tmp_path)
    plan = make_plan(parser().parse_args(["--config", str(path), "--url", url, "--rate", "1"]))
    assert plan.source == Source(None, None, "null")
    assert plan.prices is not None


@pytest.mark.parametrize(("options", "number"), [((), 2), (("--duration", "60s"), 1)])
def test_a_trace_is_replayed_to_its_end_unless_a_duration_is_given(
    url: str, tmp_path: Path, options: tuple[str, ...], number: int
) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n3600,1,1\n")
    plan = make_plan(parser().parse_args(["--url", url, "--trace", str(tmp_path / "t.csv"), *options]))
    assert len(plan.schedule(None, 0)) == number
    assert (plan.description["duration_s"] is None) is (span_s(plan.options) is None) is (number == 2)


@pytest.mark.parametrize("load", [("--phases", "2s@1"), ("--concurrency", "1", "--requests", "2")])
def test_a_run_that_does_not_end_by_time_records_no_duration(url: str, load: tuple[str, ...]) -> None:
    assert make_plan(parser().parse_args(["--url", url, *load])).description["duration_s"] is None
