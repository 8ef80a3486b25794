"""What a fault is here: how it is made to happen, what is promised, and the row of a table that says what it did."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.faults.stage import Stage
from benchmarks.load.traffic import Effect, Run

Value = float | int | str
MAX_ERRORS, MAX_ERROR_CHARS = 5, 160
_NUMBER = re.compile(r"\d{4,}|\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault did.

    Args:
        effect: success, failed, latency before and after, recovery.
        checks: what is promised, in words, and whether it held.
        figures: whatever else is worth knowing.
        errors: what clients were told, or what became of their connections, and how often.
    """

    effect: Effect
    checks: Mapping[str, bool]
    figures: Mapping[str, Value] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def broken(self) -> tuple[str, ...]:
        """The promises that did not hold."""
        return tuple(promise for promise, held in self.checks.items() if not held)


def outcome_of(
    stage: Stage, run: Run, checks: Mapping[str, bool], figures: Mapping[str, Value] | None = None
) -> Outcome:
    """Of the run's first mark."""
    return Outcome(stage.effect(run), checks, figures or {}, errors_of(run))


def errors_of(run: Run) -> dict[str, int]:
    """What its clients were told most, and how often."""
    errors = Counter(_NUMBER.sub("#", str(sent.error))[:MAX_ERROR_CHARS] for sent in run.failed)
    return dict(errors.most_common(MAX_ERRORS))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that breaks: its row in the table (docs/benchmarking.md), and what is promised. ``site`` names the
    server that it needs (`benchmarks/faults/sites.py`).
    """

    row: str
    name: str
    site: str
    promise: str
    play: Callable[[Stage], Coroutine[None, None, Outcome]]

    @property
    def id(self) -> str:
        return f"{self.row} {self.name}"


HEAD = f"{'fault':44} {'ok':>5} {'failed':>6} {'TTFT p50 before':>16} {'after':>7} {'max':>7} {'recovery':>9}  promise"


def row_of(fault: Fault, outcome: Outcome) -> str:
    """The fault's line in the table, and one more for each promise that did not hold."""
    effect = outcome.effect
    before, after, most = (
        "-" if math.isnan(seconds) else f"{seconds:.3f} s"
        for seconds in (effect.ttft_p50_before_s, effect.ttft_p50_after_s, effect.ttft_max_after_s)
    )
    words = "held" if not outcome.broken else "BROKEN"
    figures = ", ".join(f"{name} {_short(value)}" for name, value in outcome.figures.items())
    line = (
        f"{fault.id:44} {effect.num_succeeded:5} {effect.num_failed:6} {before:>16} {after:>7} {most:>7} "
        f"{effect.recovery_s:7.1f} s  {words}: {fault.promise}"
    )
    more = [figures] if figures else []
    more += [f"does not hold: {promise}" for promise in outcome.broken]
    if outcome.broken:
        more += [f"{number} x {error}" for error, number in outcome.errors.items()]
    return "\n".join([line, *(f"{'':46}{words}" for words in more)])


def document(played: Iterable[tuple[Fault, Outcome]]) -> list[dict[str, object]]:
    """The table as JSON."""
    return [
        {
            "row": fault.row,
            "name": fault.name,
            "promise": fault.promise,
            "effect": dataclasses.asdict(outcome.effect),
            "checks": dict(outcome.checks),
            "figures": dict(outcome.figures),
            "errors": dict(outcome.errors),
        }
        for fault, outcome in played
    ]


def _short(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
