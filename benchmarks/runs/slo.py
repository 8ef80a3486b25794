"""What a run must hold to be good: bounds on the latency of each request, and the share that must keep within them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.arrivals import parse_duration_s
from benchmarks.load.mistake import BenchError
from benchmarks.runs.rows import Rows

_BOUNDS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds in seconds, from the intended start; None: none. ``objective``: share of requests."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    objective: float = 0.99

    def is_met(self, rows: Rows) -> NDArray[np.bool_]:
        """Per request: whole, and within every bound. A failed one never is."""
        met: NDArray[np.bool_] = rows.is_ok.copy()
        if self.ttft_s is not None:
            met &= rows.ttft_s <= self.ttft_s
        if self.tpot_s is not None:
            tpot_s = rows.tpot_s
            met &= (tpot_s <= self.tpot_s) | np.isnan(tpot_s)  # an answer of one token has none to miss
        if self.e2e_s is not None:
            met &= rows.e2e_s <= self.e2e_s
        return met

    def __str__(self) -> str:
        bounds = [
            f"{name} <= {value:g} s" for name, value in zip(_BOUNDS, self.bounds, strict=True) if value is not None
        ]
        return f"{self.objective:.3%} of requests whole" + (f" with {' and '.join(bounds)}" if bounds else "")

    @property
    def bounds(self) -> tuple[float | None, ...]:
        return self.ttft_s, self.tpot_s, self.e2e_s

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "words": str(self)}


def parse_slo(text: str) -> Slo:
    """``ttft=2s,tpot=100ms,e2e=30s,objective=0.99``, any of them. Raises BenchError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name not in (*_BOUNDS, "objective"):
            raise BenchError(f"'{part}' is no part of an SLO; write ttft=2s,tpot=100ms,e2e=30s,objective=0.99")
        if name == "objective":
            found[name] = _share(value)
        else:
            found[f"{name}_s"] = parse_duration_s(value)
    return Slo(**found)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise BenchError(f"objective={text}: write a share between 0 and 1, such as 0.99")
    return share
