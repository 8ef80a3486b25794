"""What a server says of itself: metrics, processes, GPUs."""

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, Never

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from benchmarks.load.mistake import BenchError
from benchmarks.runs import prometheus
from benchmarks.runs.gpus import Gpus
from benchmarks.runs.watcher import _FIGURES, Source, Watcher, usage_of


class Server:
    """Two replicas' series, as the admin port shows them."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.queue = Histogram(
            "vllm:request_queue_time_seconds", "", ["replica"], registry=registry, buckets=(0.1, 0.2, 1.0)
        )
        self.preempted = Counter("vllm:num_preemptions", "", ["replica"], registry=registry)
        self.queries = Counter("vllm:prefix_cache_queries", "", ["replica"], registry=registry)
        self.hits = Counter("vllm:prefix_cache_hits", "", ["replica"], registry=registry)
        self.running = Gauge("vllm:num_requests_running", "", ["replica"], registry=registry)
        self.kv = Gauge("vllm:kv_cache_usage_perc", "", ["replica"], registry=registry)
        self.usd = Gauge("ballast_usd_per_hour", "", ["model", "pool"], registry=registry)
        self.replicas = Gauge("ballast_replicas", "", ["pool", "state"], registry=registry)
        self.usd.labels("m", "cpu").set(0.2)
        self.replicas.labels("cpu", "ready").set(2)
        self.replicas.labels("cpu", "not_ready").set(1)
        for replica, share in (("a", 0.25), ("b", 0.75)):
            self.running.labels(replica).set(3)
            self.kv.labels(replica).set(share)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def worked(self, replicas: str = "ab") -> prometheus.Reading:
        """What it says after some more work."""
        self.work(replicas)
        return prometheus.read(self.text())

    def work(self, replicas: str = "ab") -> None:
        for replica in replicas:
            self.queue.labels(replica).observe(0.15)
            self.preempted.labels(replica).inc(2)
            self.queries.labels(replica).inc(100)
            self.hits.labels(replica).inc(30)


@pytest.fixture
def server() -> Server:
    return Server()


HEAD = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    yield from listening(lambda: HEAD + server.text().encode())


def listening(answer: Callable[[], bytes]) -> Iterator[str]:
    """The address of a server that says this, HTTP or not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer())

        def log_message(self, *_: object) -> None: ...

    listener = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{listener.server_port}/metrics"
    listener.shutdown()
    thread.join()
    listener.server_close()


def test_replicas_are_summed_and_the_fullest_cache_is_told(server: Server) -> None:
    found = prometheus.read(server.text())
    assert found.gauges == {"running_requests": 6.0, "kv_cache_usage": 0.75}
    assert found.ready_replicas == {"cpu": 2.0}


def test_what_happened_is_the_difference(server: Server) -> None:
    found = prometheus.over([server.worked() for _ in range(2)])
    assert found["num_preemptions"] == 4.0
    assert found["prefix_cache_hit_share"] == 0.3
    queue = found["engine_queue_ms"]
    assert (queue["n"], queue["mean"]) == (2, 150.0)
    assert [queue[name] for name in ("p50", "p99")] == [
        {"value": value, "ci95": None, "is_at_most": False} for value in (150.0, 199.0)
    ]
    assert "prefill_ms" not in found, "what the server does not have is left out"


def test_counters_of_a_restarted_server_count_from_nothing(server: Server) -> None:
    again = Server()
    found = prometheus.over([server.worked(), server.worked(), again.worked(), again.worked()])
    assert found["num_preemptions"] == 4.0 + 4.0 + 4.0
    assert (found["engine_queue_ms"]["n"], found["engine_queue_ms"]["mean"]) == (2 + 2 + 2, 150.0)


def test_quantiles_have_intervals_where_there_is_enough(server: Server) -> None:
    queue = prometheus.over([server.worked() for _ in range(31)])["engine_queue_ms"]
    assert queue["n"] == 60
    low, high = queue["p50"]["ci95"]
    assert low <= queue["p50"]["value"] <= high
    assert queue["p99"]["ci95"] is None, "less than one of sixty is beyond it"


@pytest.mark.parametrize(("num_quiet", "is_known"), [(27, True), (28, False)])
def test_stretches_without_a_request_are_no_requests_of_no_time(server: Server, num_quiet: int, is_known: bool) -> None:
    readings = [server.worked()]
    for place in range(30):
        if place >= num_quiet:
            for _ in range(20):
                server.work()
        readings.append(prometheus.read(server.text()))
    p50 = prometheus.over(readings)["engine_queue_ms"]["p50"]
    assert p50["ci95"] == ([150.0, 150.0] if is_known else None)


def test_what_lies_in_the_first_bucket_is_known_by_its_bound_alone(server: Server) -> None:
    first = server.worked()
    for _ in range(100):
        server.queue.labels("a").observe(0.001)
    queue = prometheus.over([first, prometheus.read(server.text())])["engine_queue_ms"]
    assert queue["p50"] == {"value": 100.0, "ci95": None, "is_at_most": True}
    assert queue["mean"] == pytest.approx(1.0)


def test_quantiles_are_linear_within_a_bucket_and_end_at_the_last_finite_bound() -> None:
    counts = np.array([[1.0, 1.0, 10.0], [0.0, 10.0, 10.0], [4.0, 8.0, 8.0]])
    found = prometheus.quantiles_s(counts, np.array([1.0, 2.0, math.inf]), (0.5, 0.9))
    assert found[:, 0].tolist() == pytest.approx([2.0, 1.5, 1.0])
    assert found[:, 1].tolist() == pytest.approx([2.0, 1.9, 1.8])


def test_metrics_that_were_read_once_say_nothing(server: Server) -> None:
    assert prometheus.over([server.worked()]) == {}


def test_a_long_watch_keeps_no_more_readings_than_it_needs(server: Server) -> None:
    watcher = Watcher(Source())
    readings = [server.worked() for _ in range(1000)]
    for at_s, reading in enumerate(readings):
        watcher._keep(float(at_s), reading)
    assert len(watcher._kept) <= 120
    assert watcher._kept[0] == (0.0, readings[0])
    assert watcher._last == (999.0, readings[-1])


def followed(*readings: prometheus.Reading) -> dict[str, Any]:
    return prometheus.over(list(accumulate(readings, prometheus.continued)))


def test_a_replica_that_goes_away_takes_no_history_with_it(server: Server) -> None:
    for _ in range(1000):
        server.work()
    first = server.worked()
    server.work()
    for series in (server.preempted, server.queue):
        series.remove("b")
    found = followed(first, prometheus.read(server.text()), server.worked("a"))
    assert found["num_preemptions"] == 2.0 + 2.0
    assert (found["engine_queue_ms"]["n"], found["engine_queue_ms"]["mean"]) == (2, 150.0)


def test_what_was_missing_from_one_scrape_counts_from_where_it_was(server: Server) -> None:
    found = followed(server.worked(), prometheus.read(""), server.worked())
    assert (found["num_preemptions"], found["engine_queue_ms"]["n"]) == (4.0, 2)


def test_while_a_series_is_missing_another_ones_history_does_not_count() -> None:
    def count(series: str, number: int) -> prometheus.Reading:
        return prometheus.read("".join(f'{series}_bucket{{le="{bound}"}} {number}\n' for bound in ("1", "+Inf")))

    ours, vllms = "ballast_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"
    assert followed(count(ours, 5), count(vllms, 1000), count(ours, 7))["server_ttft_ms"]["n"] == 2


def test_a_watcher_keeps_the_last_totals_of_what_has_gone(server: Server) -> None:
    watcher = Watcher(Source())
    first = server.worked()
    watcher._keep(0.0, first)
    watcher._keep(1.0, prometheus.read(""))
    assert watcher._kept[-1][1].counters == first.counters


def test_the_warm_up_is_not_in_what_the_server_says(server: Server, url: str) -> None:
    with Watcher(Source(url)) as watcher:
        server.work()
        watcher._look()
        server.work()
    for at_s, sample in enumerate(watcher.samples):
        sample["at_s"] = watcher.started_s + at_s
    watcher._kept = [(watcher.started_s + at_s, reading) for at_s, (_, reading) in enumerate(watcher._kept)]
    watcher._last = watcher._kept[-1]
    assert watcher.document()["engine_queue_ms"]["n"] == 4
    assert watcher.document(warmup_s=1.5)["engine_queue_ms"]["n"] == 2


def test_what_pools_cost_before_and_after_the_measurement_is_not_its_cost(server: Server, url: str) -> None:
    watcher = Watcher(Source(url))
    watcher._gpus = None
    for at_s, usd_per_hour in enumerate((9.0, 9.0, 1.0, 2.0, 3.0, 9.0)):
        server.usd.labels("m", "cpu").set(usd_per_hour)
        watcher._look()
        watcher.samples[-1]["at_s"] = watcher.started_s + at_s
    assert watcher.usd_per_hour(1.5, 4.5) == {"cpu": pytest.approx((1.0 + 2.0 + 3.0) / 3.0)}
    assert watcher.usd_per_hour(2.1, 2.9) == {"cpu": 1.0}


def test_another_models_series_do_not_count() -> None:
    text = 'ballast_usd_per_hour{model="a",pool="cpu"} 1\nballast_usd_per_hour{model="b",pool="cpu"} 2\n'
    assert prometheus.read(text, "b").usd_per_hour == {"cpu": 2.0}
    assert prometheus.read(text).usd_per_hour == {"cpu": 3.0}


def test_a_watcher_tells_the_runs_own_share(server: Server, url: str) -> None:
    server.work()
    with Watcher(Source(url, os.getpid())) as watcher:
        server.work()
    found = watcher.document()
    assert (found["num_preemptions"], found["engine_queue_ms"]["n"]) == (4.0, 2)
    assert found["cpu_cores_mean"] >= 0.0
    assert found["rss_mib_max"] > 10.0
    assert watcher.usd_per_hour(0.0, math.inf) == {"cpu": 0.2}
    assert [row["ready_replicas"] for row in watcher.timeline()] == [2.0, 2.0]


def test_a_server_that_does_not_count_its_replicas_has_not_none_of_them() -> None:
    for url in listening(lambda: HEAD + b"vllm:num_requests_running 3\n"):
        with Watcher(Source(url)) as watcher:
            pass
    assert [sample["running_requests"] for sample in watcher.samples] == [3.0, 3.0]
    assert not any("ready_replicas" in sample for sample in watcher.samples)


def test_a_process_is_measured_with_its_descendants() -> None:
    found = usage_of(os.getpid())
    assert found["num_processes"] >= 1
    assert found["num_fds"] >= 3


def test_what_may_not_be_read_of_a_process_is_left_out_and_the_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: int) -> float:
        raise PermissionError

    monkeypatch.setitem(_FIGURES, "num_fds", forbidden)
    found = usage_of(os.getpid())
    assert "num_fds" not in found
    assert found["num_threads"] >= 1
    assert found["num_processes"] >= 1


def test_a_source_that_is_none_says_what_to_do(url: str) -> None:
    Source(url, os.getpid()).check()
    with pytest.raises(BenchError, match="admin port"):
        Source("http://127.0.0.1:1/metrics").check()
    with pytest.raises(BenchError, match="no process"):
        Source(pid=2**22 + 1).check()


@pytest.fixture(
    params=[
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\na 1\n",
        HEAD + b"\xff",
        HEAD + b"<html>",
        HEAD + b'a{b="1", ="2"} 3\n',
    ],
    ids=["no HTTP", "not whole", "no text", "no Prometheus", "a label without a name"],
)
def broken_url(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from listening(lambda: request.param)


def test_a_source_that_answers_something_else_says_what_to_do(broken_url: str) -> None:
    with pytest.raises(BenchError, match="admin port"):
        Source(broken_url).check()


def test_an_answer_that_breaks_is_a_look_without_metrics(broken_url: str) -> None:
    with Watcher(Source(broken_url)) as watcher:
        pass
    assert [sample["is_metrics_lost"] for sample in watcher.timeline()] == [True, True]


def test_a_metric_whose_name_ends_like_a_histograms_is_none() -> None:
    assert prometheus.read("in_the_bucket 3\n").buckets == {}


class NvmlError(Exception): ...


def refuse(*_: object) -> Never:
    raise NvmlError


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The binding, with two GPUs."""
    found = SimpleNamespace(
        NVMLError=NvmlError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetPowerUsage=lambda handle: 100_000 * (handle + 1),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50 * handle),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=2**30),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


def test_gpus_are_read_where_nvml_is(nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus.find()
    assert gpus is not None
    assert gpus.read() == {"gpu_power_w": 300.0, "gpu_utilisation": 0.25, "gpu_memory_gib": 2.0}
    nvml.nvmlInit = refuse
    assert Gpus.find() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpus.find() is None


def test_what_nvml_refuses_is_left_out(nvml: SimpleNamespace) -> None:
    gpus = Gpus.find()
    assert gpus is not None
    nvml.nvmlDeviceGetUtilizationRates = refuse
    assert gpus.read() == {"gpu_power_w": 300.0, "gpu_memory_gib": 2.0}


@pytest.mark.parametrize(("pid", "is_seen"), [(None, False), (os.getpid(), True)])
def test_gpus_of_this_machine_are_those_of_a_server_that_runs_on_it(
    nvml: SimpleNamespace, pid: int | None, is_seen: bool
) -> None:
    with Watcher(Source(pid=pid)) as watcher:
        pass
    assert ["gpu_power_w" in sample for sample in watcher.samples] == [is_seen, is_seen]


def test_cpu_time_of_a_process_that_ends_stays_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    used_s = iter([10.0, 12.0, 3.0, 4.0])
    tree = {"rss_mib": 1.0, "num_fds": 1.0, "num_threads": 1.0, "num_processes": 1.0}
    monkeypatch.setattr("benchmarks.runs.watcher.usage_of", lambda _: {**tree, "cpu_s": next(used_s)})
    watcher = Watcher(Source(pid=os.getpid()))
    watcher._gpus = None
    for at_s in range(4):
        watcher._look()
        watcher.samples[-1]["at_s"] = watcher.started_s + at_s
    assert watcher.document()["cpu_cores_mean"] == 1.0, "2 s, then a process is gone, then 1 s"
