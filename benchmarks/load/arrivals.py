"""When requests arrive: constant, Poisson or gamma arrivals at a rate that may step and ramp, as data from a seed.

All three are renewal processes of rate 1 that are stretched onto the clock by the inverse of the cumulative rate (time
rescaling: Çinlar, *Introduction to Stochastic Processes*, 1975, ch. 4), so that ramps need no rule of their own.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.mistake import BenchError

Process = Literal["constant", "poisson", "gamma"]
PROCESSES: tuple[Process, ...] = get_args(Process)

_PHASE = re.compile(r"(?P<span>[0-9.]+[a-z]*)@(?P<begin>[0-9.]+)(-(?P<end>[0-9.]+))?")
_DURATION = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>ms|s|m|h|)")
_UNIT_S = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time during which the rate goes in a straight line from ``begin_per_s`` to ``end_per_s``."""

    span_s: float
    begin_per_s: float
    end_per_s: float

    @property
    def num_expected(self) -> float:
        return self.span_s * (self.begin_per_s + self.end_per_s) / 2.0

    def rate_at(self, after_s: float) -> float:
        """Per second, ``after_s`` its beginning."""
        return self.begin_per_s + (self.end_per_s - self.begin_per_s) * after_s / self.span_s


def steady(rate_per_s: float, span_s: float) -> tuple[Phase, ...]:
    """One phase at one rate."""
    return (Phase(span_s, rate_per_s, rate_per_s),)


def parse_duration_s(text: str) -> float:
    """``250ms``, ``30s``, ``5m``, ``2h`` or a plain number of seconds. Raises BenchError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found["number"]) <= 0.0:
        raise BenchError(f"'{text}' is no duration; write 250ms, 30s, 5m, 2h or a number of seconds")
    return float(found["number"]) * _UNIT_S[found["unit"]]


def parse_phases(text: str) -> tuple[Phase, ...]:
    """``60s@5,2m@5-50,30s@20``: a minute at 5 requests/s, two minutes from 5 to 50, half a minute at 20.

    Raises BenchError.
    """
    phases = []
    for part in text.split(","):
        found = _PHASE.fullmatch(part.strip())
        try:
            if found is None:
                raise ValueError
            begin_per_s = float(found["begin"])
            end_per_s = float(found["end"]) if found["end"] else begin_per_s
        except ValueError:
            raise BenchError(
                f"'{part}' is no phase; write SPAN@RATE for a step or SPAN@RATE-RATE for a ramp, as in 60s@5,2m@5-50"
            ) from None
        phases.append(Phase(parse_duration_s(found["span"]), begin_per_s, end_per_s))
    if sum(phase.num_expected for phase in phases) <= 0.0:
        raise BenchError(f"'{text}' sends nothing: at least one phase needs a rate above 0")
    return tuple(phases)


@dataclass(frozen=True, slots=True)
class Surge:
    """``factor`` times the rate, from ``at_s`` after the start for ``span_s``."""

    at_s: float
    span_s: float
    factor: float


def surged(phases: Sequence[Phase], surges: Sequence[Surge]) -> tuple[Phase, ...]:
    """The phases with their rate multiplied during each surge; where surges overlap, by all their factors."""
    if not surges:
        return tuple(phases)
    edges = sorted({edge for surge in surges for edge in (surge.at_s, surge.at_s + surge.span_s)})
    found: list[Phase] = []
    begin_s = 0.0
    for phase in phases:
        end_s = begin_s + phase.span_s
        cuts = [begin_s, *(edge for edge in edges if begin_s < edge < end_s), end_s]
        for left_s, right_s in pairwise(cuts):
            factor = math.prod(each.factor for each in surges if each.at_s <= left_s < each.at_s + each.span_s)
            rates = (phase.rate_at(moment_s - begin_s) * factor for moment_s in (left_s, right_s))
            found.append(Phase(right_s - left_s, *rates))
        begin_s = end_s
    return tuple(found)


def arrival_times_s(
    phases: Sequence[Phase], process: Process, rng: np.random.Generator, burstiness: float = 1.0
) -> NDArray[np.float64]:
    """Sorted seconds after the start, all before the phases' end.

    ``burstiness`` is the gamma's shape, as in vLLM's benchmark: 1 is Poisson, below 1 comes in bursts, above 1 is more
    regular; the gaps' coefficient of variation is 1 / sqrt(burstiness). The other processes have none.
    """
    total = sum(phase.num_expected for phase in phases)
    if process == "constant":
        # Half a gap in, so that the number sent is the rate times the span whatever the rounding.
        units = np.arange(round(total), dtype=np.float64) + 0.5
    else:
        units = _renewals(total, 1.0 if process == "poisson" else burstiness, rng)
    return _stretch(units, phases)


def _renewals(total: float, shape: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Event times of a renewal process with gamma gaps of mean 1 in [0, total)."""
    times = np.zeros(0)
    reached = 0.0
    while reached < total:
        missing = total - reached
        num_gaps = int(missing + 4.0 * math.sqrt(missing / shape)) + 16
        more = reached + np.cumsum(rng.gamma(shape, 1.0 / shape, num_gaps))
        times = np.concatenate([times, more])
        reached = float(times[-1])
    return times[times < total]


def _stretch(units: NDArray[np.float64], phases: Sequence[Phase]) -> NDArray[np.float64]:
    """The times at which the cumulative rate reaches ``units`` (sorted, below its total)."""
    found = []
    begin_s = begun = 0.0
    for phase in phases:
        here = units[(units >= begun) & (units < begun + phase.num_expected)] - begun
        slope = (phase.end_per_s - phase.begin_per_s) / phase.span_s
        # begin * t + slope * t^2 / 2 = here, in the form that stays exact when the slope is 0.
        root = np.sqrt(phase.begin_per_s**2 + 2.0 * slope * here)
        found.append(begin_s + 2.0 * here / np.maximum(phase.begin_per_s + root, 1e-300))
        begin_s += phase.span_s
        begun += phase.num_expected
    return np.concatenate(found)
