"""One visit on the real thing: a whole server with a candidate's settings, started by `ballast up` on ports and with a
state folder of its own, measured by the code of `ballast bench sweep`, and stopped.
"""

import argparse
import copy
import dataclasses
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.calibrate import alone
from benchmarks.load.mistake import BenchError
from benchmarks.runs import document as documents
from benchmarks.runs.live import View
from benchmarks.runs.options import make_plan
from benchmarks.runs.rows import read_rows
from benchmarks.runs.serve import start_document, write_out
from benchmarks.runs.slo import Slo
from benchmarks.runs.sweep import Search, is_hopeless, point_of
from benchmarks.server import RunningServer, running
from benchmarks.tune.search import SHORT, Visit, Wish
from benchmarks.tune.settings import Pool, Settings, changed, num_replicas, words
from serving.config import Config, parse_config
from serving.errors import ConfigError
from serving.machine import Machine
from serving.plan import plan, read_specs

GROWTH = {"first": 2.0, SHORT: 1.3, "lap": 1.1}
"""From one rate to the next: doubling while nothing is known, small steps where the edge is near."""
PRECISION = {SHORT: 0.1, "lap": 0.05}
DURATION = {SHORT: 1.0, "lap": 2.0}
"""Of a round, by --duration."""
EDGE_ROUNDS = {SHORT: 1, "lap": 2}
MOST_ROUNDS = 10
"""Of one visit."""
_FOLDERS = re.compile(r"(?<![\w.])~?(/[\w.@+-]+)+/")


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """The pool that is tuned: the whole config as JSON, its model and itself."""

    config: dict[str, Any]
    model: dict[str, Any]
    pool: Pool

    def with_settings(self, settings: Settings, replicas: int | None = None) -> dict[str, Any]:
        """A config of this pool alone, on loopback, with the settings; ``replicas``: other than they say."""
        number = replicas or num_replicas(self.pool, settings)
        # Keys, prices and targets of the real server have no part in it, its limits have.
        server = {**self.config["server"], "host": "127.0.0.1"}
        limits = self.config["limits"]
        return {**alone(self.model, changed(self.pool, settings), number), "server": server, "limits": limits}

    def problem_of(self, settings: Settings, machine: Machine) -> str | None:
        """Why the settings cannot run here; None: nothing is known to be in the way."""
        try:
            config = self.parsed(settings)
        except ConfigError as error:
            return "; ".join(
                f"{problem.path.rpartition('pools[0].')[2]}: {problem.reason}" for problem in error.problems
            )
        return next((finding.message for finding in plan(config, machine, read_specs(config)).errors), None)

    def parsed(self, settings: Settings) -> Config:
        """Raises ConfigError."""
        return parse_config(yaml.safe_dump(self.with_settings(settings)), Path.cwd())


class Bench:
    """Measures visits of one subject. Their runs lie in numbered folders under ``folder``."""

    def __init__(self, subject: Subject, options: argparse.Namespace, slo: Slo, folder: Path, given: Sequence[str]):
        self._subject, self._options, self._slo, self._folder, self._given = subject, options, slo, folder, given
        self.is_stopping = False
        """Somebody has asked to stop: what fails from now on does so because of that."""

    def measure(self, wish: Wish) -> Visit:
        """Start, measure, stop. What the server or the generator made of it is in the visit; Ctrl-C raises."""
        began_s = time.monotonic()
        folder = self._new_folder()
        try:
            with self.server(wish.settings) as server:
                search = self._search(wish, server, folder)
        except (RuntimeError, BenchError, OSError) as error:
            if self.is_stopping:
                raise KeyboardInterrupt from error
            visit = Visit(wish.settings, wish.stage, wish.number, error=reason(str(error)), folder=folder.name)
        else:
            visit = self.read(wish, folder, search.complaint)
        return dataclasses.replace(visit, wall_s=round(time.monotonic() - began_s, 1))

    @contextmanager
    def server(self, settings: Settings, replicas: int | None = None) -> Iterator[RunningServer]:
        """Raises RuntimeError when it does not start, or does not stop."""
        try:
            with running(self._subject.with_settings(settings, replicas), *self._options.up) as server:
                yield server
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"its server did not stop within {error.timeout:g} s and was killed") from error

    def read(self, wish: Wish, folder: Path, complaint: str | None) -> Visit:
        """A visit from the files that it has left. ``complaint``: that of the generator, where it has one."""
        found = documents.read(folder)
        points, tokens = [], []
        for number, each in enumerate(found.document["rounds"]):
            rows = read_rows(found.rows_of(number), self._options.warmup)
            points.append(point_of(each, rows, self._slo))
            tokens.append(each["throughput"]["prompt_tokens_mean"] + each["throughput"]["output_tokens_mean"])
        return Visit(
            wish.settings,
            wish.stage,
            wish.number,
            points=tuple(points),
            tokens_per_request=sum(tokens) / len(tokens) if tokens else 0.0,
            error=complaint,
            least_per_s=wish.least_per_s,
            is_hopeless=is_hopeless(points, wish.least_per_s, self._slo.objective),
            folder=folder.name,
        )

    def _new_folder(self) -> Path:
        taken = [int(path.name.rpartition("-")[2]) for path in self._folder.glob("visit-*")]
        folder = self._folder / f"visit-{max(taken, default=-1) + 1:03}"
        folder.mkdir(parents=True)
        return folder

    def _search(self, wish: Wish, server: RunningServer, folder: Path) -> Search:
        options = self._options_for(wish, server)
        made = dataclasses.replace(make_plan(options), slo=self._slo)
        document = {**start_document("sweep", self._given, made), "discarded_rounds": []}
        is_first = wish.start_per_s is None
        search = Search(
            made,
            folder,
            document,
            title=words(wish.settings),
            growth=GROWTH["first" if is_first else wish.stage],
            least_per_s=wish.least_per_s,
        )
        search.points.extend(wish.known)
        with View(words(wish.settings), options.warmup + options.duration) as view:
            search.run(view)
        if search.is_interrupted:
            raise KeyboardInterrupt
        document["status"] = "complete" if search.complaint is None else "generator was the bottleneck"
        write_out(document, folder, options.report)
        return search

    def _options_for(self, wish: Wish, server: RunningServer) -> argparse.Namespace:
        options = copy.copy(self._options)
        options.url = f"http://127.0.0.1:{server.port}"
        options.metrics_url = f"http://127.0.0.1:{server.admin_port}/metrics"
        options.server_pid = server.pid
        options.model = self._subject.model["name"]
        options.config = options.slo = None
        options.seed = self._options.seed + 100_003 * wish.number
        options.start_rate = wish.start_per_s or self._options.start_rate
        options.duration = DURATION[wish.stage] * self._options.duration
        options.precision = PRECISION[wish.stage]
        options.rounds = EDGE_ROUNDS[wish.stage]
        options.max_rounds = len(wish.known) + MOST_ROUNDS
        return options


def reason(text: str) -> str:
    """The one line of a failed start that says why, without this machine's folders."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("ballast: ") or "could not be started" in line]
    return _FOLDERS.sub("", (told or lines or ["it said nothing"])[-1]).removeprefix("ballast: ")
