"""The options that all runs share, and what they come to."""

import argparse
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load.arrivals import PROCESSES, Phase, Surge, parse_duration_s, parse_phases, steady, surged
from benchmarks.load.lengths import load_trace, parse_lengths
from benchmarks.load.mistake import BenchError
from benchmarks.load.probe import first_model, learn_speech
from benchmarks.load.prompts import Speech
from benchmarks.load.schedule import Schedule, Workload, closed_schedule, open_schedule, trace_schedule
from benchmarks.load.target import Target, parse_target
from benchmarks.load.workers import default_num_workers
from benchmarks.runs.cost import Prices, prices_of
from benchmarks.runs.slo import Slo, parse_slo
from benchmarks.runs.watcher import Source
from benchmarks.simulator.trace import Trace, TraceError
from serving.config import Config, load_config, read_environment
from serving.lifecycle.record import ServerRecord, running_server

DEFAULT_URL = "http://127.0.0.1:8000/v1"
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (nothing is bound here)
_CLOSED_SESSIONS = 2**14
"""Planned ahead for a closed loop by time; they begin again, with other words, when they are used up."""


class _Noted(argparse.Action):
    """Stores the value and the option's name: what another option makes void is refused where it was given."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {*_given(namespace), self.dest}


def _given(options: argparse.Namespace) -> set[str]:
    """Names of noted options that were given."""
    found: set[str] = getattr(options, "given", set())
    return found


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run against what, with all that had to be asked of the target."""

    target: Target
    speech: Speech
    workload: Workload
    slo: Slo
    source: Source
    prices: Prices | None
    options: argparse.Namespace
    surges: tuple[Surge, ...] = ()

    def schedule(self, rate_per_s: float | None, seed: int) -> Schedule:
        """At ``rate_per_s``, or as --phases, --trace or --concurrency say. Raises BenchError."""
        options = self.options
        if options.concurrency is not None:
            number = options.requests or _CLOSED_SESSIONS
            return closed_schedule(self.workload, -(-number // self.workload.turns), seed)
        if options.trace is not None:
            return trace_schedule(self.workload, self._trace(rate_per_s, seed), seed)
        phases = surged(_phases(options, rate_per_s), self.surges)
        return open_schedule(self.workload, phases, options.arrivals, seed, options.burstiness)

    def _trace(self, rate_per_s: float | None, seed: int) -> Trace:
        trace = load_trace(self.options.trace)
        span_s = self.options.warmup + self.options.duration
        if rate_per_s is not None:
            try:
                return trace.resampled(span_s, rate_per_s, seed)
            except TraceError as error:
                raise BenchError(str(error)) from error
        return trace.part(0.0, span_s) if _ends_by_time(self.options) else trace

    @property
    def description(self) -> dict[str, Any]:
        """For the document: how load was made."""
        options = self.options
        names = (
            "concurrency", "requests", "phases", "arrivals", "burstiness", "max_concurrency", "prompt_tokens",
            "output_tokens", "prefix_tokens", "num_prefixes", "turns", "tools_share", "json_share", "cancel_share",
            "slow_share", "seed", "salt", "rounds", "endpoint", "workers", "extra",
        )  # fmt: skip
        found = {name: getattr(options, name) for name in names}
        found |= {"rate_per_s": options.rate, "has_min_tokens": not options.no_min_tokens}
        found |= {f"{name}_s": getattr(options, name) for name in ("think", "warmup", "timeout")}
        found["duration_s"] = options.duration if _ends_by_time(options) else None
        for name in ("trace", "lengths_from"):
            path = getattr(options, name)
            found[name] = path.name if path else None
        return {**found, "tokens_per_word": round(self.speech.tokens_per_word, 4)}


def _phases(options: argparse.Namespace, rate_per_s: float | None) -> tuple[Phase, ...]:
    if rate_per_s is not None:
        return steady(rate_per_s, options.warmup + options.duration)
    phases = parse_phases(options.phases)
    if options.warmup:
        return (Phase(options.warmup, phases[0].begin_per_s, phases[0].begin_per_s), *phases)
    return phases


def add_target(parser: argparse.ArgumentParser) -> None:
    """Options that name the server."""
    group = parser.add_argument_group("the server")
    group.add_argument("--url", default=None, help=f"base URL of its API (default: {DEFAULT_URL}, or the --config's)")
    group.add_argument("--model", help="default: the first that it lists")
    group.add_argument("--endpoint", choices=("chat", "completions"), default="chat", help="default: chat")
    group.add_argument("--key-env", default="OPENAI_API_KEY", metavar="VAR", help="environment variable with the key")
    group.add_argument("--extra", type=_json_object, default={}, metavar="JSON", help="fields to put into every body")
    group.add_argument("--no-min-tokens", action="store_true", help="do not send vLLM's min_tokens with max_tokens")
    group.add_argument("--metrics-url", metavar="URL", help="its metrics: http://127.0.0.1:8001/metrics for Ballast")
    group.add_argument("--server-pid", type=int, metavar="PID", help="its process here, to measure CPU and memory")
    group.add_argument(
        "--config", type=Path, metavar="FILE",
        help="its Ballast config: gives SLO and prices, and finds the server that runs from it",
    )  # fmt: skip


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Options that say what requests look like."""
    group = parser.add_argument_group("what is sent")
    group.add_argument(
        "--prompt-tokens",
        action=_Noted,
        default="128",
        metavar="LENGTH",
        help="N, normal:MEAN,SD, lognormal:MEDIAN,SIGMA",
    )
    group.add_argument("--output-tokens", action=_Noted, default="64", metavar="LENGTH", help="the same")
    group.add_argument(
        "--lengths-from", action=_Noted, type=Path, metavar="TRACE", help="draw pairs of lengths from a trace instead"
    )
    group.add_argument("--prefix-tokens", type=int, default=0, metavar="N", help="shared system prompt of that length")
    group.add_argument("--num-prefixes", type=int, default=1, metavar="K", help="different shared prompts")
    group.add_argument("--turns", type=int, default=1, help="requests per conversation")
    group.add_argument(
        "--think",
        action=_Noted,
        type=duration_s,
        default=0.0,
        metavar="TIME",
        help="between an answer and the next turn",
    )
    group.add_argument(
        "--tools-share", type=float, default=0.0, metavar="SHARE", help="of requests that must call a tool"
    )
    group.add_argument("--json-share", type=float, default=0.0, metavar="SHARE", help="of requests with a JSON schema")
    group.add_argument(
        "--cancel-share", type=float, default=0.0, metavar="SHARE", help="of clients that hang up midway"
    )
    group.add_argument("--slow-share", type=float, default=0.0, metavar="SHARE", help="of clients that read slowly")
    group.add_argument("--seed", type=natural, default=0, help="same seed, same schedule and same lengths")
    group.add_argument("--salt", default=secrets.token_hex(4), metavar="WORD",
                       help="same seed and salt, same words; default: a new one, unknown to any cache")  # fmt: skip


def add_load(parser: argparse.ArgumentParser, *, has_rate: bool = True) -> None:
    """Options that say when requests leave. Without ``has_rate`` the run chooses rates itself."""
    group = parser.add_argument_group("when it is sent")
    if has_rate:
        group.add_argument(
            "--rate", type=positive, metavar="R", help="open loop: requests (or conversations) per second"
        )
        group.add_argument("--concurrency", type=count, metavar="C", help="closed loop: so many clients")
        group.add_argument("--phases", metavar="PHASES", help="steps and ramps: 60s@5,2m@5-50,30s@20")
        group.add_argument("--trace", type=Path, metavar="FILE", help="replay; with --rate resampled to that rate")
        group.add_argument("--requests", type=count, metavar="N", help="closed loop: so many, however long it takes")
    else:
        parser.set_defaults(rate=None, concurrency=None, phases=None, trace=None, requests=None)
    whole = "; of a trace without --rate, all of it" if has_rate else ""
    group.add_argument("--duration", action=_Noted, type=duration_s, default=60.0, metavar="TIME",
                       help=f"default: %(default)gs{whole}")  # fmt: skip
    group.add_argument("--warmup", type=duration_s, default=0.0, metavar="TIME", help="sent before, and not measured")
    group.add_argument(
        "--rounds", type=count, default=1, metavar="N", help="measure so many times, each with new words"
    )
    group.add_argument("--arrivals", action=_Noted, choices=PROCESSES, default="poisson", help="default: poisson")
    group.add_argument("--burstiness", type=positive, default=1.0, help="shape of gamma arrivals: below 1 is bursty")
    group.add_argument(
        "--max-concurrency", type=count, metavar="N", help="open loop: more wait in the client, and are late"
    )
    group.add_argument(
        "--timeout", type=duration_s, default=600.0, metavar="TIME", help="for one request; default: 10m"
    )


def add_outcome(parser: argparse.ArgumentParser) -> None:
    """Options that say what must hold, and where results go."""
    group = parser.add_argument_group("what must hold, and where it is written")
    group.add_argument("--slo", metavar="SLO", help="ttft=2s,tpot=100ms,e2e=30s,objective=0.99; any of them")
    group.add_argument("--workers", type=count, default=default_num_workers(), help="generator processes")
    group.add_argument("--max-delay-ms", type=positive, default=20.0, metavar="MS",
                       help="p99 of the generator's own delay over which a run fails (default: 20)")  # fmt: skip
    group.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/bench/KIND-TIME")
    group.add_argument("--report", action="store_true", help="also write report.html and its charts")
    group.add_argument("--json", action="store_true", help="print run.json and nothing else")


def make_plan(options: argparse.Namespace) -> Plan:
    """Ask the target what has to be known of it. Raises BenchError, ConfigError."""
    config = read_config(options.config) if options.config is not None else None
    record = find_record(config) if config else None
    if config and record is None and options.url is None:
        raise BenchError(no_server(options.config))
    if record is not None and not is_at(options.url, record):
        record = None  # nothing of it is to be seen beside another server's figures
    url = options.url or (own_target(record).url if record else DEFAULT_URL)
    target = parse_target(url, os.environ.get(options.key_env))
    model = options.model or first_model(target)
    metrics_url = options.metrics_url or (f"http://127.0.0.1:{record.admin_port}/metrics" if record else None)
    names = [entry.name for entry in config.models if model in entry.names] if config else []
    source = Source(metrics_url, options.server_pid or (record.pid if record else None), *names)
    source.check()
    prices = prices_of(config, model) if config else None
    promised = prices.slo if prices else Slo()
    slo = parse_slo(options.slo) if options.slo else promised
    workload = make_workload(options)
    speech = Speech(
        model, options.seed, options.endpoint, not options.no_min_tokens,
        prefix_tokens=options.prefix_tokens, salt=options.salt, extra=options.extra,
    )  # fmt: skip
    return Plan(target, learn_speech(target, speech), workload, slo, source, prices, options)


def read_config(path: Path) -> Config:
    """As `ballast up` reads it: variables of the environment over what the file says. Raises ConfigError."""
    return load_config(path, read_environment(os.environ))


def find_record(config: Config) -> ServerRecord | None:
    """The server that runs from ``config`` on this machine, if one does."""
    state_dir = config.server.state_dir
    return running_server(state_dir) if state_dir.exists() else None


def own_target(record: ServerRecord) -> Target:
    """Where this machine reaches the server; an address for all interfaces is no destination."""
    return Target(_REACHED_AT.get(record.host, record.host), record.port, "/v1")


def is_at(url: str | None, record: ServerRecord) -> bool:
    """Whether load for ``url`` goes to the server of ``record``, as it does without one. Raises BenchError."""
    if url is None:
        return True
    found, own = parse_target(url), own_target(record)
    hosts = {own.host, "localhost"} if own.host in _REACHED_AT.values() else {own.host}
    return found.host in hosts and (found.port, found.is_tls) == (own.port, own.is_tls)


def no_server(path: Path) -> str:
    """What to say when none runs."""
    return f"no server runs from {path} on this machine; start it with: ballast up --config {path}"


def make_workload(options: argparse.Namespace) -> Workload:
    """Raises BenchError for a share, a length or a trace that cannot be, or an option that another makes void."""
    _refuse_void(options, "lengths_from", ("prompt_tokens", "output_tokens"), "the trace has the lengths")
    if "think" in _given(options) and options.turns == 1:
        raise BenchError("--think is between the turns of a conversation: give --turns too")
    return Workload(
        prompt=parse_lengths(options.prompt_tokens),
        output=parse_lengths(options.output_tokens),
        lengths_from=load_trace(options.lengths_from) if options.lengths_from else None,
        prefix_tokens=options.prefix_tokens,
        num_prefixes=options.num_prefixes,
        turns=options.turns,
        think_s=options.think,
        tools_share=options.tools_share,
        json_share=options.json_share,
        cancel_share=options.cancel_share,
        slow_share=options.slow_share,
    )


def check_load(options: argparse.Namespace) -> None:
    """One way to send, and no option that another makes void. Raises BenchError."""
    ways = [name for name in ("concurrency", "phases", "trace") if getattr(options, name) is not None]
    if options.rate is not None and "trace" not in ways:
        ways.append("rate")
    if len(ways) != 1:
        found = (
            f"{' and '.join(f'--{way}' for way in ways)} exclude each other"
            if ways
            else "nothing says how fast to send"
        )
        raise BenchError(f"{found}: give one of --rate, --concurrency, --phases or --trace")
    if options.requests is not None and options.concurrency is None:
        raise BenchError("--requests is for a closed loop: give --concurrency too, or --duration")
    if options.concurrency is not None and options.max_concurrency is not None:
        raise BenchError("--max-concurrency is for an open loop; a closed one has --concurrency clients")
    if options.burstiness != 1.0 and options.arrivals != "gamma":
        raise BenchError("--burstiness is for --arrivals gamma")
    _refuse_void(options, "phases", ("duration",), "its phases say how long")
    _refuse_void(options, "requests", ("duration",), "the run ends with the last of them")
    _refuse_void(options, "concurrency", ("arrivals",), "each client sends when it has been answered")
    lengths = ("prompt_tokens", "output_tokens", "lengths_from")
    _refuse_void(options, "trace", ("arrivals", *lengths), "the trace has arrivals and lengths of its own")


def _refuse_void(options: argparse.Namespace, by: str, names: Sequence[str], why: str) -> None:
    """Raises BenchError where one of ``names`` was given beside the option ``by``."""
    void = [name for name in names if name in _given(options)]
    if getattr(options, by) is not None and void:
        raise BenchError(f"{_flag(void[0])} does nothing beside {_flag(by)}: {why}; leave one of them out")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _ends_by_time(options: argparse.Namespace) -> bool:
    """Whether --duration (or its default) says how long a round is."""
    is_replay = options.trace is not None and options.rate is None and "duration" not in _given(options)
    return options.phases is None and options.requests is None and not is_replay


def span_s(options: argparse.Namespace) -> float | None:
    """How long a round sends load; None where that depends on the server or the trace. Raises BenchError."""
    if options.phases is not None:
        return float(options.warmup) + sum(phase.span_s for phase in parse_phases(options.phases))
    return float(options.warmup + options.duration) if _ends_by_time(options) else None


def duration_s(text: str) -> float:
    """argparse prints the message of an ArgumentTypeError, and of no other."""
    try:
        return parse_duration_s(text)
    except BenchError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> float:
    """For argparse: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' must be a number above 0")
    return value


def count(text: str) -> int:
    """For argparse: a whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    """For argparse: a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number, 0 or more")
    return int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('must be a JSON object, such as {"temperature": 0.7}')
    return value
