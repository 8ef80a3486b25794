"""Do `ballast bench serve` and guidellm see the same? ``python -m benchmarks.agreement --guidellm FILE [--json FILE]``.

The same server (the null server, whose times jitter as an engine's do, or ``--url``), workload and rate, measured by
one and by the other in turn; printed are the percentiles of both, each the median over rounds, their ratio, and what
the null server is known to do.
guidellm has an environment of its own (``pip install guidellm==0.8.1``), and FILE is its program.

guidellm's clock for TTFT and latency starts when a request is sent, and its ITL is a request's mean: ours are compared
by the same measure (`ttft_service`, `tpot`). On a server that keeps up, the two starts are the same moment.

With ``--metrics-url`` the server's own percentiles during each tool's runs stand beside: on a machine that all share, a
tool that computes much slows the server that it measures, and both are right. guidellm gets one worker process: on two
cores ten of its own would be most of the load.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment
from benchmarks.compare_check import SAME, started
from benchmarks.load.mistake import BenchError
from benchmarks.load.null_server import Manners
from benchmarks.runs import serve
from benchmarks.runs.document import read
from benchmarks.runs.prometheus import continued, over
from benchmarks.runs.watcher import Source

POINTS = ("p50", "p90", "p95", "p99")
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 32
_NUM_DRAWN = 100_000
_MODEL = Path(__file__).resolve().parent.parent / "models" / "demo"
THEIRS = {
    "ttft": ("time_to_first_token_ms", 1.0),
    "tpot": ("inter_token_latency_ms", 1.0),
    "e2e": ("request_latency", 1e3),
}
OURS = {"ttft": "ttft_service_ms", "tpot": "tpot_ms", "e2e": "e2e_service_ms"}


def by_guidellm(program: Path, url: str, model: str, rate_per_s: float, seconds: float) -> dict[str, Any]:
    """Milliseconds by metric and percentile."""
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as folder:
        path = Path(folder) / "run.json"
        command = [
            str(program), "run", "--disable-console",
            "--backend", f"kind=openai_http,target={url},model={model},request_format=/v1/chat/completions",
            "--profile", f"kind=poisson,rate={rate_per_s:g}",
            "--constraint", f"kind=max_duration,seconds={seconds:g}",
            "--tokenizer", f"kind=huggingface_auto,model={_MODEL}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}",
            "--output", f"kind=json,path={path}",
        ]  # fmt: skip
        _run(command)
        metrics = json.loads(path.read_text())["benchmarks"][0]["metrics"]
    return {
        name: {point: factor * metrics[theirs]["successful"]["percentiles"][point] for point in POINTS}
        for name, (theirs, factor) in THEIRS.items()
    } | {"num_requests": metrics["request_latency"]["successful"]["count"]}


def _run(command: Sequence[str]) -> None:
    """In a process group of its own, none of which is left when this ends. Raises BenchError."""
    process = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    try:
        said, _ = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise BenchError(f"guidellm has failed: {shlex.join(command)}\n{said[-2000:]}")


def _environment() -> dict[str, str]:
    """Without this checkout on its path: guidellm has packages of its own."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "GUIDELLM__MAX_WORKER_PROCESSES": "1",
    }


def by_us(url: str, model: str, rate_per_s: float, seconds: float, seed: int) -> dict[str, Any]:
    """Milliseconds by metric and percentile."""
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as folder:
        given = [
            "--url", url, "--model", model, "--rate", f"{rate_per_s:g}", "--duration", f"{seconds:g}s",
            "--prompt-tokens", str(PROMPT_TOKENS), "--output-tokens", str(OUTPUT_TOKENS), "--seed", str(seed),
            "--out", folder, "--json",
        ]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            serve.main(given)
        figures = read(Path(folder)).document["rounds"][0]["latency"]
    found = {name: {point: figures[ours][point]["value"] for point in POINTS} for name, ours in OURS.items()}
    return {**found, "num_requests": figures["e2e_service_ms"]["n"]}


def with_server(source: Source | None, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``run`` says, and under ``server`` what the server says of the same time, in milliseconds by metric and
    percentile; it has no word for TPOT."""
    if source is None:
        return run()
    before = source.scrape()
    said = run()
    found = over([before, continued(before, source.scrape())])
    truth = {name: {point: found[f"server_{name}_ms"][point]["value"] for point in POINTS} for name in ("ttft", "e2e")}
    return said | {"server": truth}


def known(manners: Manners) -> dict[str, dict[str, float]]:
    """What the null server does, in milliseconds by metric and percentile, drawn as it draws it."""
    rng = np.random.default_rng(0)
    first_s = manners.first_s * rng.lognormal(0.0, manners.jitter, _NUM_DRAWN)
    steps_s = manners.step_s * rng.lognormal(0.0, manners.jitter, (_NUM_DRAWN, OUTPUT_TOKENS - 1))
    drawn_s = {"ttft": first_s, "tpot": steps_s.mean(axis=1), "e2e": first_s + steps_s.sum(axis=1)}
    shares = [float(point.removeprefix("p")) / 100.0 for point in POINTS]
    return {
        name: dict(zip(POINTS, (1e3 * np.quantile(values, shares)).tolist(), strict=True))
        for name, values in drawn_s.items()
    }


def compare(
    rounds: Sequence[dict[str, dict[str, Any]]], truth: dict[str, dict[str, float]] | None
) -> Iterator[dict[str, Any]]:
    """Medians over rounds, beside the ``truth`` where it is known."""
    for name in OURS:
        for point in POINTS:
            ours, theirs = (
                statistics.median(each[who][name][point] for each in rounds) for who in ("ballast", "guidellm")
            )
            meanwhile = {
                f"server_under_{who}_ms": round(
                    statistics.median(each[who]["server"][name][point] for each in rounds), 3
                )
                for who in ("ballast", "guidellm")
                if name in rounds[0][who].get("server", {})
            }
            yield {
                "metric": name, "percentile": point, "ballast_ms": round(ours, 3),
                "guidellm_ms": round(theirs, 3), "ratio": round(ours / theirs, 3),
                "server_ms": round(truth[name][point], 3) if truth else None, **meanwhile,
            }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--guidellm", type=Path, required=True, metavar="FILE", help="its program")
    parser.add_argument("--url", help="a server's base URL, without /v1 (default: the null server)")
    parser.add_argument("--metrics-url", help="that server's metrics: http://127.0.0.1:8001/metrics for Ballast")
    parser.add_argument("--model", default="demo", help="default: demo, as the null server answers to any")
    parser.add_argument("--rate", type=float, default=20.0, metavar="R", help="requests/s")
    parser.add_argument("--duration", type=float, default=20.0, metavar="S", help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    options = parser.parse_args(arguments)
    if options.metrics_url and not options.url:
        parser.error("--metrics-url is of the server at --url")
    source = Source(options.metrics_url) if options.metrics_url else None
    head = environment.describe()
    with contextlib.ExitStack() as stack:
        url = options.url or f"http://127.0.0.1:{stack.enter_context(started(SAME))}"
        rounds = []
        for number in range(options.rounds):
            load = (options.model, options.rate, options.duration)
            theirs = with_server(source, partial(by_guidellm, options.guidellm, url, *load))
            ours = with_server(source, partial(by_us, f"{url}/v1", *load, seed=number))
            rounds.append({"guidellm": theirs, "ballast": ours})
    rows = list(compare(rounds, None if options.url else known(SAME)))
    for row in rows:
        server = "" if row["server_ms"] is None else f"server {row['server_ms']:9.2f} ms   "
        if "server_under_ballast_ms" in row:
            server = f"server {row['server_under_ballast_ms']:8.2f} and {row['server_under_guidellm_ms']:8.2f} ms   "
        print(
            f"{server}"
            f"{row['metric']:5} {row['percentile']}   ballast {row['ballast_ms']:9.2f} ms   "
            f"guidellm {row['guidellm_ms']:9.2f} ms   ratio {row['ratio']:.3f}"
        )
    if options.json:
        environment.write(options.json, {**head, "rate_per_s": options.rate, "rows": rows, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
