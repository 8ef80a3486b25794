"""``ballast tune``: which settings of a pool make a million tokens cheapest at the SLO, measured on the real engine."""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from benchmarks import environment, processes
from benchmarks.calibrate import Calibration, calibrate
from benchmarks.load.mistake import BenchError
from benchmarks.runs import document as documents
from benchmarks.runs import words as run_words
from benchmarks.runs.cost import prices_of
from benchmarks.runs.options import add_load, add_outcome, add_workload, make_workload
from benchmarks.runs.serve import INTERRUPTED_EXIT_CODE
from benchmarks.runs.slo import Slo, parse_slo
from benchmarks.tune import findings, journal
from benchmarks.tune.bench import Bench, Subject, reason
from benchmarks.tune.patch import patched
from benchmarks.tune.search import Candidate, Nothing, Tuning, Visit, Wish
from benchmarks.tune.settings import words
from benchmarks.tune.space import Knob, default_knobs, described, grid, parse_try, with_tried
from models.spec import ModelSpec
from serving.commands.settings import config_path
from serving.config import load_config, parse_config, read_environment
from serving.machine import observe_machine
from serving.plan import plan, read_specs

NOTHING_CHEAPER_EXIT_CODE = 1
_SERVER = "serving.lifecycle.holder"
"""In the command line of every running Ballast server."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="ballast tune",
        description="Search for the settings of a pool that make tokens cheapest at the SLO: servers of their own are "
        "started with one candidate after the other and measured.",
        epilog="Exit codes: 0 a cheaper setting was found and written; 1 none was; 2 an option or the config is wrong, "
        "or the config does not run; 130 interrupted, what was measured is kept. Example: ballast tune -c ballast.yaml "
        "--slo ttft=500ms,tpot=50ms --budget-min 30",
    )
    group = options.add_argument_group("what is tuned")
    group.add_argument("-c", "--config", metavar="FILE", help="config file (default: as of `ballast up`)")
    group.add_argument("--model", metavar="NAME", help="of the config; needed where it has several")
    group.add_argument("--pool", metavar="NAME", help="of the model; needed where it has several")
    group.add_argument(
        "--try", action="append", default=[], dest="tried", metavar="KEY=VALUE,…",
        help="values of a setting, such as engine.max_num_seqs=64,256 or engine.quantization=fp8 (repeat for more)",
    )  # fmt: skip
    group.add_argument("--keep", action="append", default=[], metavar="KEY", help="leave this setting as it is")
    group = options.add_argument_group("the search")
    group.add_argument("--budget-min", type=float, default=30.0, metavar="MINUTES", help="of measuring (30)")
    group.add_argument("--grid", action="store_true", help="measure every combination of the --try values instead")
    group.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with an earlier run of the same options")
    group.add_argument("--start-rate", type=float, default=2.0, metavar="R", help="first rate tried, requests/s (2)")
    group.add_argument("--max-rate", type=float, default=1e4, metavar="R", help="never try more (10000)")
    group.add_argument("--write", type=Path, metavar="FILE", help="the tuned config (CONFIG.tuned.yaml beside it)")
    group.add_argument("--no-speed", action="store_true", help="do not measure the winner's `speed` at the end")
    group.add_argument(
        "--up", action="append", default=[], help=argparse.SUPPRESS
    )  # options of `ballast up`, for tests
    add_workload(options)
    add_load(options, has_rate=False)
    add_outcome(options)
    options.set_defaults(
        duration=10.0, warmup=2.0, rounds=5, url=None, endpoint="chat", key_env="", extra={}, no_min_tokens=False
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Raises BenchError, ConfigError."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    _check(options)
    command = Command(options, given)
    former = signal.signal(signal.SIGTERM, command.stop)
    try:
        return command.run()
    finally:
        signal.signal(signal.SIGTERM, former)


def _check(options: argparse.Namespace) -> None:
    if not (options.budget_min > 0.0 and 0.0 < options.start_rate <= options.max_rate):
        raise BenchError("a tuning needs --budget-min above 0 and 0 < --start-rate <= --max-rate")
    if options.grid and not options.tried:
        raise BenchError("--grid measures every combination of what --try names: --try engine.max_num_seqs=32,64,128")
    make_workload(options)


class Command:
    """One run of it."""

    def __init__(self, options: argparse.Namespace, given: Sequence[str]) -> None:
        """Raises BenchError, ConfigError."""
        self.options = options
        self.path = config_path(options.config, read_environment(os.environ))
        self.text = self.path.read_text() if self.path.exists() else ""
        config = load_config(self.path)
        self.config = config
        self.subject = subject_of(config.model_dump(mode="json"), options.model, options.pool)
        self.machine = observe_machine(Path.cwd())
        self.slo = self._slo()
        self.knobs = self._knobs()
        self.console = Console(stderr=True, highlight=False, markup=False, quiet=options.json)
        self.target = options.write or self.path.with_name(f"{self.path.stem}.tuned.yaml")
        if self.target.absolute().parent != self.path.absolute().parent:
            raise BenchError(f"--write {self.target}: its relative paths start at {self.path}; name a file beside it")
        self.folder, self.document = self._open(given)
        self.bench = Bench(self.subject, options, self.slo, self.folder, given)
        self.journal = journal.Journal(self.bench, self.folder, self.document)
        self.tuning = Tuning(
            pool=self.subject.pool,
            objective=self.slo.objective,
            measure=self._measure,
            problem_of=lambda settings: self.subject.problem_of(settings, self.machine),
            budget_s=60.0 * options.budget_min,
            show=self._show,
        )

    def _slo(self) -> Slo:
        if self.options.slo:
            slo = parse_slo(self.options.slo)
        else:
            prices = prices_of(self.config, self.subject.model["name"])
            assert prices is not None, "the model is of this config"
            slo = prices.slo
        if slo.bounds == (None, None, None):
            raise BenchError("nothing to hold: name bounds with --slo ttft=500ms,tpot=50ms")
        return slo

    def _knobs(self) -> list[Knob]:
        config = self.subject.with_settings({})
        parsed = self.subject.parsed({})
        specs = read_specs(parsed)
        spec = specs.get(self.subject.model["name"])
        [planned] = plan(parsed, self.machine, specs).pools
        workload = make_workload(self.options)
        most_tokens = round(workload.prompt.middle_tokens + workload.output.middle_tokens) + workload.prefix_tokens
        pool = config["models"][0]["pools"][0] | {"replicas": self.subject.pool["replicas"]}
        dtype = spec.dtype if isinstance(spec, ModelSpec) else None
        tried = [parse_try(pool, text) for text in self.options.tried]
        if self.options.grid:
            return tried
        return with_tried(
            default_knobs(pool, self.machine.num_cpus, dtype, planned, most_tokens), tried, self.options.keep
        )

    def _open(self, given: Sequence[str]) -> tuple[Path, dict[str, Any]]:
        names = ("prompt_tokens", "output_tokens", "prefix_tokens", "num_prefixes", "turns", "think", "tools_share",
                 "json_share", "cancel_share", "slow_share", "seed", "duration", "warmup", "arrivals", "burstiness",
                 "max_concurrency", "timeout", "start_rate", "max_rate", "workers", "max_delay_ms")  # fmt: skip
        question = {
            "model": self.subject.model["name"],
            "pool": {**self.subject.pool, "python": None},
            "load": {name: getattr(self.options, name) for name in names}
            | {"lengths_from": self.options.lengths_from.name if self.options.lengths_from else None},
            "slo": self.slo.document(),
            "knobs": [{"key": knob.key, "values": list(knob.values), "own": knob.own} for knob in self.knobs],
            "is_grid": self.options.grid,
        }
        if self.options.resume is not None:
            return self.options.resume, journal.reopen(self.options.resume, question)
        folder = documents.new_folder("tune", self.options.out)
        if (folder / journal.NAME).exists():
            raise BenchError(f"{folder} holds a tuning already; go on with it by --resume, or name another with --out")
        head = documents.head("tune", given) | {"num_other_servers": len(processes.named(_SERVER))}
        head["command"] = head["command"].replace("ballast bench tune", "ballast tune", 1)
        return folder, {**head, "question": question, "visits": []}

    def run(self) -> int:
        """Search, judge, write."""
        self._tell()
        status, exit_code = "complete", 0
        try:
            self._search()
        except KeyboardInterrupt:
            status, exit_code = "interrupted", INTERRUPTED_EXIT_CODE
        except Nothing as error:
            raise BenchError(f"{self.path} cannot be measured as it is: {error}") from error
        if not any(each.visits for each in self.tuning.candidates.values()):
            self.console.print("Interrupted before anything was measured")
            self.document |= {"status": status, "result": None, "calibration": None}
            if self.options.json:
                print(json.dumps(self.document))
            return exit_code
        found = findings.as_json(self.tuning, self.folder)
        former = self.document.get("result") or {}
        known = self.document.get("calibration") if former.get("winner") == found["winner"] else None
        self.document |= {"status": status, "result": found, "calibration": known}
        environment.write(self.folder / journal.NAME, self.document)
        if known is None and exit_code == 0 and found["is_cheaper"] and not self.options.no_speed:
            known = self._calibrated(found["winner"])
        self.document["calibration"] = calibration = known
        environment.write(self.folder / journal.NAME, self.document)
        if found["is_cheaper"]:
            self._write_config(calibration)
        self._print(found, status)
        return exit_code or (0 if found["is_cheaper"] else NOTHING_CHEAPER_EXIT_CODE)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM, which is as Ctrl-C: once, because what follows is the stopping."""
        signal.signal(number, signal.SIG_IGN)
        self.bench.is_stopping = True
        raise KeyboardInterrupt

    def _tell(self) -> None:
        if number := self.document["num_other_servers"]:
            self.console.print(
                f"Warning: {number} Ballast server(s) run on this machine. They and this disturb each other: stop "
                "them, or take these figures for a comparison at best.", style="yellow",
            )  # fmt: skip
        for knob in self.knobs:
            self.console.print(f"  {described(knob)}", style="dim")

    def _search(self) -> None:
        if self.options.grid:
            self.tuning.measure_grid(grid(self.knobs))
        else:
            self.tuning.descend(self.knobs)
        self.tuning.run_laps(self.options.rounds)

    def _measure(self, wish: Wish) -> Visit:
        self.console.print(f"  {wish.stage} {wish.number + 1}: {words(wish.settings)}", style="dim")
        return self.journal.measure(wish)

    def _show(self, candidate: Candidate) -> None:
        minutes = f"{self.tuning.spent_s / 60.0:.1f} of {self.options.budget_min:g} min"
        self.console.print(f"{minutes}  {findings.line(candidate, self.slo.objective)}")

    def _calibrated(self, winner: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a step of the winner costs (`benchmarks/calibrate.py`); None where that cannot be measured, or Ctrl-C
        has ended it."""
        self.console.print(f"Measuring the speed of {words(winner)}", style="dim")
        try:
            with self.bench.server(winner, replicas=1) as server:
                calibration = asyncio.run(calibrate(server, self.subject.model["name"], self.subject.pool["name"]))
        except (RuntimeError, OSError) as error:
            self.console.print(f"No speed was measured: {reason(str(error))}", style="yellow")
            return None
        except KeyboardInterrupt:
            self.console.print("No speed was measured: interrupted", style="yellow")
            return None
        return _calibration(calibration)

    def _write_config(self, calibration: Mapping[str, Any] | None) -> None:
        pool = self.subject.pool
        winner = self.tuning.winner()
        evidence = findings.tuned(self.tuning, winner, self.slo, self._load(), self.document)
        speed = calibration["speed"] if calibration else None
        text = patched(
            self.text, self.subject.model["name"], pool["name"], findings.changes(pool, winner, speed),
            findings.comments(evidence, pool),
        )  # fmt: skip
        parse_config(text, self.path.absolute().parent)
        self.target.write_text(text)
        names = {"model": self.subject.model["name"], "pool": pool["name"]}
        environment.write(self.target.with_suffix(".json"), {"schema_version": 1, "kind": "tuned", **names, **evidence})

    def _load(self) -> str:
        options = self.options
        if options.lengths_from:
            return f"lengths of {options.lengths_from.name}"
        return f"{options.prompt_tokens} prompt and {options.output_tokens} output tokens"

    def _print(self, found: Mapping[str, Any], status: str) -> None:
        if self.options.json:
            print(json.dumps(self.document))
            return
        console = run_words.terminal()
        console.print(findings.table(found))
        if status == "interrupted":
            console.print(f"Interrupted: what was measured is kept; go on with --resume {self.folder}")
        elif self.tuning.spent_s >= self.tuning.budget_s:
            console.print(f"The budget is spent; for more, a larger --budget-min and --resume {self.folder}")
        if found["is_cheaper"]:
            console.print(f"Written: {self.target}. Next: `ballast check --config {self.target}`, then `ballast apply`")
        console.print(f"Everything is in {self.folder / journal.NAME}", style="dim")


def _calibration(found: Calibration) -> dict[str, Any]:
    return {
        "speed": found.as_config(),
        "held_out": [asdict(row) for row in found.held_out],
        "median_tpot_error": statistics.median(abs(row.tpot_error) for row in found.held_out),
        "median_ttft_error": statistics.median(abs(row.ttft_error) for row in found.held_out),
    }


def subject_of(config: dict[str, Any], model: str | None, pool: str | None) -> Subject:
    """The one that is meant. Raises BenchError where that is not clear, or it has no price."""
    found_model = _one(config["models"], model, "model")
    found_pool = _one(found_model["pools"], pool, "pool")
    if not found_pool["usd_per_hour"] > 0.0:
        raise BenchError(f"pool {found_pool['name']} is free (usd_per_hour: 0): nothing is cheaper; give it a price")
    return Subject(config, found_model, found_pool)


def _one(entries: Sequence[dict[str, Any]], name: str | None, kind: str) -> dict[str, Any]:
    names = [entry["name"] for entry in entries]
    if name is None and len(entries) > 1:
        raise BenchError(f"the config has {kind}s {', '.join(names)}: say which with --{kind}")
    if name is not None and name not in names:
        raise BenchError(f"there is no {kind} {name}; there are {', '.join(names)}")
    return entries[0] if name is None else entries[names.index(name)]
