"""``ballast bench peers``: the same load on Ballast, on raw vLLM, and on what else stands before vLLM.

Servers are started, measured by turns and stopped here. Rounds are interleaved: in each, every load is put on every
contender in turn, the first of them another one each time. With ``--out`` naming the folder of an earlier run its
rounds stay, and these are added.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from benchmarks import environment, processes
from benchmarks.load.arrivals import parse_duration_s
from benchmarks.load.mistake import BenchError, GeneratorTooSlow
from benchmarks.load.probe import learn_speech
from benchmarks.load.prompts import Speech
from benchmarks.peers.contenders import BALLAST, CONTENDERS, VLLM, Setting
from benchmarks.peers.launch import PeerError, Server
from benchmarks.peers.ratios import JUDGED, METRICS, MODES, Case, Measured, Turn, ahead_of_ballast, summarise, unknown
from benchmarks.runs import document as documents
from benchmarks.runs import serve
from benchmarks.runs.live import View, quiet
from benchmarks.runs.options import Plan, count, make_workload, positive
from benchmarks.runs.round import Round, run_round
from benchmarks.runs.rows import read_rows
from benchmarks.runs.slo import Slo
from benchmarks.runs.watcher import Source
from benchmarks.runs.words import terminal

T = TypeVar("T")
AHEAD_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130
SAMPLED = Case("sampled", 32)
_SETTLE_S, _IDLE_S = 5.0, 3.0
_WARMUP_S = 1.0
_MOST_ATTEMPTS = 3
_ATTEMPTS_APART = 10**4
"""Between the numbers of a round's attempts, by which they get words of their own."""
_WARM_UP_ROUND = 10**6
"""Far from those that are measured, so that it shares no words with them."""


@dataclass(slots=True)
class Stage:
    """The servers that are up, and why the others are not."""

    setting: Setting
    names: Sequence[str]
    up: dict[str, Server]
    missing: dict[str, str]
    versions: dict[str, str]

    @property
    def measured(self) -> list[str]:
        """Those that are up and were asked for: not an engine that only stands behind another."""
        return [name for name in self.up if name in self.names]

    def cpu_s(self, name: str) -> float:
        """CPU time so far of a server and of the engine behind it."""
        needs = CONTENDERS[name].needs
        return self.up[name].cpu_s() + (self.up[needs].cpu_s() if needs else 0.0)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="ballast bench peers",
        description="The same load on Ballast, raw vLLM, Ray Serve LLM, and routers and proxies before raw vLLM. "
        "`make setup-peers` installs those that are not part of Ballast.",
        epilog="Exit codes: 0 nobody is ahead of Ballast beyond noise in throughput or TTFT; 1 somebody is, or it is "
        "not known; 2 an option is wrong or Ballast does not start; 3 the generator was the bottleneck; 130 "
        "interrupted, what was measured is kept. Example: ballast bench peers --peers vllm,litellm --rounds 5",
    )
    names = [name for name in CONTENDERS if name != BALLAST]
    options.add_argument("--peers", default=",".join(names), metavar="NAMES", help=f"of {', '.join(names)}")
    options.add_argument(
        "--config", type=Path, default=Path("ballast.yaml"), metavar="FILE", help="default: ballast.yaml"
    )
    options.add_argument("--concurrency", default="1,8,32,64", metavar="C,…", help="default: 1,8,32,64")
    options.add_argument("--rounds", type=count, default=5, metavar="N", help="default: 5")
    options.add_argument("--duration", default="10s", metavar="TIME", help="of one measurement; default: 10s")
    options.add_argument("--prompt-tokens", type=count, default=128, metavar="N", help="default: 128")
    options.add_argument("--output-tokens", type=count, default=64, metavar="N", help="default: 64")
    options.add_argument(
        "--no-sampling", action="store_true", help="do not measure Ballast and raw vLLM with temperature and top-p too"
    )
    options.add_argument("--workers", type=count, default=1, metavar="N", help="generator processes; default: 1")
    options.add_argument("--max-delay-ms", type=positive, default=100.0, metavar="MS",
                         help="p99 of the generator's own lag over which a run fails (default: 100)")  # fmt: skip
    options.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/bench/peers-TIME")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Raises BenchError, ConfigError, GeneratorTooSlow."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    names, cases = [BALLAST, *chosen(options.peers)], chosen_cases(options)
    setting = Setting.of(options.config)
    folder, document = _opened(options, given, setting)
    is_interrupted = False
    with _ending_like_ctrl_c(), servers(setting, names) as stage:
        document["versions"] |= stage.versions
        known = document["missing"] | stage.missing
        document["missing"] = {name: reason for name, reason in known.items() if name not in stage.up}
        document["sessions"].append(_session(given, stage.measured))
        first = 1 + max((each["round"] for each in document["rounds"]), default=-1)
        turns = Turns(stage, options, folder, learn_speech(stage.up[BALLAST].target, setting.speech))
        try:
            turns.warm_up(max(case.concurrency for case in cases))
            for number in range(first, first + options.rounds):
                for measurement in turns.round(number, cases):
                    document["rounds"].append(measurement)
                    documents.write(folder, document)
        except KeyboardInterrupt:
            is_interrupted = True
    return _finish(document, folder, options, is_interrupted)


@contextlib.contextmanager
def _ending_like_ctrl_c() -> Iterator[None]:
    """SIGTERM is heard as Ctrl-C is: no server may outlive this process."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def chosen(text: str) -> list[str]:
    """Names of --peers, in the table's order. Raises BenchError."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in CONTENDERS or name == BALLAST]:
        known = ", ".join(name for name in CONTENDERS if name != BALLAST)
        raise BenchError(f"--peers: no peer '{unknown[0]}'; there are {known}")
    if not wanted:
        raise BenchError("--peers names nobody to compare with")
    return [name for name in CONTENDERS if name in wanted]


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The loads. Raises BenchError."""
    try:
        concurrencies = [int(word) for word in options.concurrency.split(",")]
    except ValueError:
        concurrencies = [0]
    if min(concurrencies) < 1:
        raise BenchError(f"--concurrency {options.concurrency}: write whole numbers above 0, such as 1,8,32")
    parse_duration_s(options.duration)
    cases = [Case("greedy", concurrency) for concurrency in concurrencies]
    return cases if options.no_sampling else [*cases, SAMPLED]


def _opened(options: argparse.Namespace, given: Sequence[str], setting: Setting) -> tuple[Path, documents.Document]:
    """A new run, or an earlier one to which rounds are added. Raises BenchError."""
    load = {name: getattr(options, name) for name in ("duration", "prompt_tokens", "output_tokens", "workers")}
    fixed = {"load": load, "model": setting.model, "engine": setting.engine_args()}
    if options.out and (options.out / documents.NAME).exists():
        found = documents.read(options.out)
        if found.document.get("kind") != "peers" or any(found.document.get(name) != fixed[name] for name in fixed):
            raise BenchError(f"{options.out} holds a run with another load or config; name another folder with --out")
        return found.folder, found.document
    document = {
        **documents.head("peers", given),
        **fixed,
        "modes": MODES,
        "missing": {},
        "sessions": [],
        "rounds": [],
    }
    return documents.new_folder("peers", options.out), document


@contextlib.contextmanager
def servers(setting: Setting, names: Sequence[str]) -> Iterator[Stage]:
    """All of ``names`` that can be started, one after the other. Raises BenchError when Ballast cannot."""
    stage = Stage(setting, names, {}, {}, {})
    with contextlib.ExitStack() as stack:
        for name in with_needs(names):
            documents.say(f"starting {CONTENDERS[name].title}")
            try:
                _start(stage, name, stack)
            except (PeerError, RuntimeError) as error:
                if name == BALLAST:
                    raise BenchError(f"Ballast does not start: {error}") from error
                stage.missing[name] = str(error)
                documents.say(f"{name} is left out: {error}")
        yield stage


def with_needs(names: Sequence[str]) -> list[str]:
    """``names`` and those that they need, in the order in which they can be started."""
    wanted = {*names, *(need for name in names if (need := CONTENDERS[name].needs))}
    return [name for name in CONTENDERS if name in wanted]


def _start(stage: Stage, name: str, stack: contextlib.ExitStack) -> None:
    """Raises PeerError."""
    contender = CONTENDERS[name]
    if contender.needs and contender.needs not in stage.up:
        raise PeerError(f"needs {contender.needs}, which is not up")
    stage.versions[contender.distribution] = contender.environment.version(contender.distribution)
    stage.up[name] = stack.enter_context(contender.start(stage.setting, stage.up))


def _session(given: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """One call of the command: servers that are up together."""
    head = documents.head("peers", given)
    kept = {name: head[name] for name in ("measured_at", "command", "commit")}
    return {**kept, "contenders": list(names), "idle_cores": _idle_cores()}


def _idle_cores() -> float:
    """Cores that all servers together take while nobody asks them anything."""
    time.sleep(_SETTLE_S)
    before_s = _cpu_s(processes.children([os.getpid()]))
    time.sleep(_IDLE_S)
    after_s = _cpu_s(before_s)
    return round(sum(after_s[pid] - before_s[pid] for pid in after_s) / _IDLE_S, 3)


def _cpu_s(pids: Iterable[int]) -> dict[int, float]:
    """CPU time so far of those processes that are still there."""
    found = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = processes.cpu_s(pid)
    return found


@dataclass(frozen=True, slots=True)
class Turns:
    """Sends each load to each contender in turn."""

    stage: Stage
    options: argparse.Namespace
    folder: Path
    speech: Speech

    def warm_up(self, concurrency: int) -> None:
        """Every contender once at the highest concurrency, unmeasured."""
        for name in self.stage.measured:
            self._measure(name, Case("greedy", concurrency), _WARM_UP_ROUND)

    def round(self, number: int, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """Every case on every contender. Raises KeyboardInterrupt."""
        for case in in_turn(cases, number):
            for name in in_turn(self.stage.measured, number):
                if case.mode == "greedy" or name in (BALLAST, VLLM):
                    yield self._described(name, case, number)

    def _described(self, name: str, case: Case, number: int) -> dict[str, Any]:
        """One measurement; where the generator was the bottleneck, the last of ``_MOST_ATTEMPTS``."""
        for attempt in range(_MOST_ATTEMPTS):
            before_s = self.stage.cpu_s(name)
            measured = self._measure(name, case, number + attempt * _ATTEMPTS_APART)
            cpu_s = self.stage.cpu_s(name) - before_s
            if not measured.complaint:
                break
        figures = measured.document
        documents.say(
            f"round {number}  {case.mode} C={case.concurrency:<3} {name:15} "
            f"{figures['throughput'].get('output_tokens_per_s', 0.0):8.1f} tokens/s"
            + ("  not valid: the generator was the bottleneck" if measured.complaint else "")
        )
        files = [str(self._folder(name, case).relative_to(self.folder) / file) for file in figures["files"]]
        return {
            "contender": name, "mode": case.mode, "concurrency": case.concurrency, "round": number,
            "began_at": figures["began_at"], "seed": figures["seed"], "num_attempts": attempt + 1,
            "requests": figures["requests"], "output_tokens_per_s": figures["throughput"].get("output_tokens_per_s"),
            **{f"{latency}_p50_ms": figures["latency"].get(f"{latency}_ms", {}).get("p50", {}).get("value")
               for latency in ("ttft", "tpot")},
            "cpu_s": round(cpu_s, 3), "generator": figures["generator"], "errors": figures["errors"], "files": files,
        }  # fmt: skip

    def _folder(self, name: str, case: Case) -> Path:
        return self.folder / f"{name}-{case.mode}-{case.concurrency}"

    def _measure(self, name: str, case: Case, number: int) -> Round:
        """Raises KeyboardInterrupt when Ctrl-C has cut it short."""
        plan = self._plan(name, case)
        with View(f"{name}, {case.mode}, {case.concurrency} clients", None) as view:
            watch = view if sys.stderr.isatty() else quiet
            found = run_round(plan, self._folder(name, case), number, None, watch)
        if found.is_interrupted:
            raise KeyboardInterrupt
        return found

    def _plan(self, name: str, case: Case) -> Plan:
        options = self.options
        given = [
            "--concurrency", str(case.concurrency), "--duration", options.duration, "--warmup", f"{_WARMUP_S:g}s",
            "--prompt-tokens", str(options.prompt_tokens), "--output-tokens", str(options.output_tokens),
            "--workers", str(options.workers), "--max-delay-ms", str(options.max_delay_ms),
            "--seed", str(seed_of(name, case)),
        ]  # fmt: skip
        run = serve.parser().parse_args(given)
        speech = replace(self.speech, extra=dict(MODES[case.mode]))
        return Plan(self.stage.up[name].target, speech, make_workload(run), Slo(), Source(), None, run)


def seed_of(name: str, case: Case) -> int:
    """Of each contender and load its own: requests are of the same shapes in other words, or one measurement would find
    another's in the prefix cache."""
    return zlib.crc32(f"{name}/{case.mode}/{case.concurrency}".encode())


def in_turn(things: Sequence[T], number: int) -> list[T]:
    """In another order in each round, and every second round backwards."""
    place = number % len(things)
    turned = [*things[place:], *things[:place]]
    return turned[:: -1 if number % 2 else 1]


def _finish(document: documents.Document, folder: Path, options: argparse.Namespace, is_interrupted: bool) -> int:
    """Write, print, judge. Raises GeneratorTooSlow."""
    rounds: list[dict[str, Any]] = document["rounds"]
    document["status"] = "interrupted" if is_interrupted else "complete"
    valid = [each for each in rounds if not each["generator"]["complaint"]]
    measured = [_turn(each, folder, parse_duration_s(options.duration)) for each in valid]
    document["num_invalid"] = len(rounds) - len(valid)
    document["summary"] = summary = summarise(measured)
    path = documents.write(folder, document)
    if options.json:
        environment.write(options.json, without_files(document))
    _print(summary, document["missing"])
    documents.say(f"written to {path}")
    if is_interrupted:
        return INTERRUPTED_EXIT_CODE
    complaints = [each["generator"]["complaint"] for each in rounds if each["generator"]["complaint"]]
    if complaints:
        raise GeneratorTooSlow(f"{len(complaints)} of {len(rounds)} measurements were left out: {complaints[0]}")
    return AHEAD_EXIT_CODE if ahead_of_ballast(summary) or unknown(summary) else 0


def _turn(found: dict[str, Any], folder: Path, span_s: float) -> Measured:
    """One entry of a document's rounds, with the lines of its requests."""
    rows = read_rows([folder / file for file in found["files"]])
    turn = Turn.of(rows, _WARMUP_S, _WARMUP_S + span_s, found.get("cpu_s", float("nan")))
    return Measured(found["contender"], Case(found["mode"], found["concurrency"]), found["round"], turn)


def without_files(document: documents.Document) -> documents.Document:
    """For a file that is kept elsewhere than the lines of its requests."""
    rounds = [{name: value for name, value in each.items() if name != "files"} for each in document["rounds"]]
    return {**document, "rounds": rounds}


def _print(summary: Sequence[dict[str, Any]], missing: dict[str, str]) -> None:
    console = terminal()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in (
        "C",
        "",
        "tokens/s",
        "to Ballast",
        "TTFT ms",
        "to Ballast",
        "TPOT ms",
        "to Ballast",
        "CPU µs",
        "failed",
    ):
        table.add_column(heading, no_wrap=True)
    for row in summary:
        case = f"{row['concurrency']}" + ("" if row["mode"] == "greedy" else f" {row['mode']}")
        cells = [cell for metric in METRICS for cell in (_value(row, metric), _ratio(row, metric))]
        table.add_row(case, row["contender"], *cells, _value(row, "cpu_us_per_token"), str(row["num_failed"]))
    console.print(table)
    for name, reason in missing.items():
        console.print(Text(f"{name}: not measured: {reason}", style="yellow"))
    for row in summary:
        if row["num_silent_rounds"]:
            words = f"{row['contender']} answered nothing in {row['num_silent_rounds']} of {row['num_rounds']} rounds"
            console.print(Text(f"{words} at C={row['concurrency']} ({row['mode']}): left out", style="yellow"))
    ahead, why = ahead_of_ballast(summary), unknown(summary)
    if not (ahead or why):
        console.print(Text("NOBODY AHEAD of Ballast beyond noise", style="bold green"))
    for words, found in (("AHEAD OF BALLAST", ahead), ("NOT KNOWN who is ahead", why)):
        if found:
            console.print(Text(f"{words}: {'; '.join(found)}", style="bold red"))


def _value(row: dict[str, Any], metric: str) -> str:
    return "-" if row.get(metric) is None else f"{row[metric]:.4g}"


def _ratio(row: dict[str, Any], metric: str) -> Text:
    """With its interval where somebody is judged by it."""
    if not row["ratios"]:
        return Text("")
    found = row["ratios"][metric]
    if found["value"] is None:
        return Text("-")
    style = {"ahead": "red", "behind": "green", "even": "dim", "unknown": "yellow"}[found["judgement"]]
    if found["ci95"] is None:
        return Text(f"{found['value']:.2f} ?", style=style)
    low, high = found["ci95"]
    span = f" ({low:.2f}–{high:.2f})" if metric in JUDGED else ""
    return Text(f"{found['value']:.2f}{span}", style=style)
