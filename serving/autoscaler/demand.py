"""What demand will be when a replica asked for now is ready, learned from what it was.

Four simple predictors of the request rate (means over half a minute, two and ten minutes, and a damped trend) are
judged by how well each foretold the rate one lead time later; their weighted geometric mean is the forecast. How far
off it was is kept as a histogram of ratios (rate found / rate foretold), old ratios fading. So the spread that a plan
must cover is the one this workload has shown, not an assumed one: narrow for a smooth day, wide for bursts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from serving.autoscaler.types import NUM_PROMPT_BUCKETS, Demand

RATIOS = (
    0.25, 0.5, 0.65, 0.75, 0.82, 0.88, 0.94, 1.0, 1.06, 1.12, 1.2, 1.3, 1.42, 1.6, 1.85, 2.2, 2.8, 4.0, 6.0, 10.0, 16.0,
    32.0,
)  # fmt: skip
"""Rate found over rate foretold: the histogram's bins."""

_EDGES = tuple(math.sqrt(low * high) for low, high in pairwise(RATIOS))
_PRIOR_WEIGHT = 10.0
_PRIOR_SIGMA = 0.1
_PRIOR_TAIL = 0.01
"""Share of the prior beyond twice the forecast."""

_MIN_INTERVAL_S = 0.01
"""Less time than this says nothing of a rate."""
_EVERY_S = 60.0
"""A forecast is made this often, and compared with the mean rate of this long."""
_SPREAD_HALF_LIFE_S = 6 * 3600.0
_PEAK_HALF_LIFE_S = 12 * 3600.0
_EXPERT_HALF_LIFE_S = 3600.0
_ABOVE_PEAK = 1.1
_ABOVE_FORECAST = 1.3
"""A surprise may lead this far above the highest rate seen, or above the forecast: in a burst the ratios of quiet
minutes to bursts would foretell a burst on top of the burst."""
_SHARPNESS = 4.0
"""How fast a worse predictor loses weight, per squared e-fold of mean error, times _ERROR_SCALE."""
_ERROR_SCALE = 50.0

_FAST_S, _MIDDLE_S, _SLOW_S, _MIX_S, _DAY_S = 30.0, 120.0, 600.0, 1800.0, 86_400.0
_TREND_DAMPING = 0.6
_MIN_RATE_PER_S = 1e-6


def _prior() -> tuple[float, ...]:
    weights = [math.exp(-0.5 * (math.log(ratio) / _PRIOR_SIGMA) ** 2) for ratio in RATIOS]
    tail = [1.0 / ratio if ratio > 2.0 else 0.0 for ratio in RATIOS]
    return tuple(
        _PRIOR_WEIGHT * ((1.0 - _PRIOR_TAIL) * weight / sum(weights) + _PRIOR_TAIL * more / sum(tail))
        for weight, more in zip(weights, tail, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Mean:
    """An exponentially fading mean that is right from the first value: ``weight`` is the share of it that is known."""

    total: float = 0.0
    weight: float = 0.0

    def after(self, value: float, fade: float) -> "Mean":
        """With one more value; ``fade`` is what is left of the old ones."""
        return Mean(self.total * fade + value * (1.0 - fade), self.weight * fade + 1.0 - fade)

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight > 0.0 else 0.0


_UNKNOWN = Mean()


@dataclass(frozen=True, slots=True)
class Forecasts:
    """What was foretold at one time: by each predictor, and by all together."""

    at_s: float
    predictors: tuple[float, ...]
    combined: float


@dataclass(frozen=True, slots=True)
class DemandMemory:
    """What is remembered of demand. A fresh one knows nothing and says so (``seen_s`` 0)."""

    seen_s: float = 0.0
    fast: Mean = _UNKNOWN
    middle: Mean = _UNKNOWN
    slow: Mean = _UNKNOWN
    day: Mean = _UNKNOWN
    prompt: Mean = _UNKNOWN
    """Prompt tokens per second, over the mix's window; likewise the next two."""
    mix: Mean = _UNKNOWN
    """Requests per second."""
    output: Mean = _UNKNOWN
    """Tokens of an answer, by finished request."""
    buckets: tuple[float, ...] = (0.0,) * NUM_PROMPT_BUCKETS
    dispersion: Mean = _UNKNOWN
    """Variance over mean of the requests that arrive in one interval."""
    spread: tuple[float, ...] = _prior()
    errors: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """Mean squared log error of each predictor."""
    pending: tuple[Forecasts, ...] = ()
    """Forecasts that wait for their time to come."""
    window_requests: float = 0.0
    window_s: float = 0.0
    peak_per_s: float = 0.0
    """The highest rate of any such window, fading."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What `decide` plans for."""

    forecast_per_s: float
    level_per_s: float
    """The higher of forecast and present mean: what a smaller fleet must be able to carry."""
    day_per_s: float
    mix_per_s: float
    """Mean over half an hour."""
    ratios: Sequence[tuple[float, float]]
    """(rate / forecast, probability)"""
    ceiling_per_s: float
    """No more than this is planned for."""
    prompt_tokens: float
    output_tokens: float
    dispersion: float
    buckets: tuple[float, ...]
    """Share of prompts by length."""


def learn(memory: DemandMemory, demand: Demand, dt_s: float, now_s: float, lead_s: float) -> DemandMemory:
    """Take in what came during the last ``dt_s`` seconds."""
    if dt_s < _MIN_INTERVAL_S:
        return memory
    rate_per_s = demand.num_arrived / dt_s
    expected = memory.middle.value * dt_s
    dispersion = memory.dispersion
    if memory.seen_s > _MIDDLE_S and expected > 0.5:
        excess = (demand.num_arrived - expected) ** 2 / expected
        dispersion = dispersion.after(min(excess, 100.0), math.exp(-dt_s / _MIX_S))
    output = memory.output
    if demand.num_finished > 0:
        output = output.after(demand.output_tokens / demand.num_finished, 0.998**demand.num_finished)
    buckets = memory.buckets
    if demand.num_arrived > 0:
        fade = 0.998**demand.num_arrived
        buckets = tuple(
            old * fade + new for old, new in zip(buckets, demand.prompts or (0,) * NUM_PROMPT_BUCKETS, strict=True)
        )
    mix_fade = math.exp(-dt_s / _MIX_S)
    memory = replace(
        memory,
        seen_s=memory.seen_s + dt_s,
        fast=memory.fast.after(rate_per_s, math.exp(-dt_s / _FAST_S)),
        middle=memory.middle.after(rate_per_s, math.exp(-dt_s / _MIDDLE_S)),
        slow=memory.slow.after(rate_per_s, math.exp(-dt_s / _SLOW_S)),
        day=memory.day.after(rate_per_s, math.exp(-dt_s / _DAY_S)),
        prompt=memory.prompt.after(demand.prompt_tokens / dt_s, mix_fade),
        mix=memory.mix.after(rate_per_s, mix_fade),
        output=output,
        buckets=buckets,
        dispersion=dispersion,
        window_requests=memory.window_requests + demand.num_arrived,
        window_s=memory.window_s + dt_s,
    )
    return _judge(memory, now_s, lead_s) if memory.window_s >= _EVERY_S else memory


def outlook(memory: DemandMemory, lead_s: float) -> Outlook:
    """What to expect ``lead_s`` from now."""
    buckets = memory.buckets
    num_known = sum(buckets)
    shares = tuple(count / num_known for count in buckets) if num_known > 0.0 else (0.0,) * NUM_PROMPT_BUCKETS
    mean = sum(share * _length(index) for index, share in enumerate(shares))
    square = sum(share * _length(index) ** 2 for index, share in enumerate(shares))
    cv2 = square / (mean * mean) - 1.0 if mean > 0.0 else 1.0
    total = sum(memory.spread)
    forecast_per_s = _combined(memory, _predictors(memory, lead_s))
    mix_per_s = memory.mix.value
    return Outlook(
        forecast_per_s=forecast_per_s,
        level_per_s=max(forecast_per_s, memory.middle.value),
        day_per_s=memory.day.value,
        mix_per_s=mix_per_s,
        ratios=tuple((ratio, weight / total) for ratio, weight in zip(RATIOS, memory.spread, strict=True)),
        ceiling_per_s=max(_ABOVE_FORECAST * forecast_per_s, _ABOVE_PEAK * memory.peak_per_s),
        prompt_tokens=max(1.0, memory.prompt.value / mix_per_s) if mix_per_s > 0.0 else 1.0,
        output_tokens=max(1.0, memory.output.value) if memory.output.weight > 0.0 else 100.0,
        dispersion=min(20.0, max(1.0, memory.dispersion.value)) + max(0.0, cv2),
        buckets=shares,
    )


def share_up_to(shares: Sequence[float], prompt_tokens: float) -> float:
    """Share of prompts of at most ``prompt_tokens``, from the histogram (evenly spread inside a bucket)."""
    found = 0.0
    for index, share in enumerate(shares):
        low, high = (0.0 if index == 0 else 2.0 ** (index - 1)), 2.0**index
        found += share * min(1.0, max(0.0, (prompt_tokens + 1.0 - low) / (high - low)))
    return found


def mean_up_to(shares: Sequence[float], prompt_tokens: float) -> float:
    """Mean length of those prompts; 1 if there are none."""
    weight = total = 0.0
    for index, share in enumerate(shares):
        low = 0.0 if index == 0 else 2.0 ** (index - 1)
        if share > 0.0 and low <= prompt_tokens:
            weight += share
            total += share * min(_length(index), 0.5 * (low + prompt_tokens))
    return max(1.0, total / weight) if weight > 0.0 else 1.0


def _length(bucket: int) -> float:
    return 0.75 * 2.0**bucket


def _predictors(memory: DemandMemory, lead_s: float) -> tuple[float, ...]:
    fast, middle, slow = memory.fast.value, memory.middle.value, memory.slow.value
    slope_per_s2 = (middle - slow) / (_SLOW_S - _MIDDLE_S)
    trend = middle + _TREND_DAMPING * slope_per_s2 * (lead_s + _MIDDLE_S)
    return tuple(max(_MIN_RATE_PER_S, rate) for rate in (fast, middle, slow, min(trend, 2.0 * max(fast, middle))))


def _combined(memory: DemandMemory, predictors: tuple[float, ...]) -> float:
    best = min(memory.errors)
    weights = [math.exp(-min(50.0, _SHARPNESS * _ERROR_SCALE * (error - best))) for error in memory.errors]
    return math.exp(
        sum(weight * math.log(rate) for weight, rate in zip(weights, predictors, strict=True)) / sum(weights)
    )


def _judge(memory: DemandMemory, now_s: float, lead_s: float) -> DemandMemory:
    """Compare what was foretold for now with what came, and foretell again."""
    predictors = _predictors(memory, lead_s)
    made = Forecasts(now_s, predictors, _combined(memory, predictors))
    pending = memory.pending
    spread, errors = memory.spread, memory.errors
    peak_per_s = memory.peak_per_s * 0.5 ** (memory.window_s / _PEAK_HALF_LIFE_S)
    due = [forecast for forecast in pending if forecast.at_s <= now_s - lead_s]
    if due:
        forecast = due[-1]
        window_s = memory.window_s
        # One request more on both sides: without it a quiet minute would read as an infinite surprise.
        found = (memory.window_requests + 1.0) / window_s
        foretold = forecast.combined + 1.0 / window_s
        # What chance alone does to a count is reckoned in the loss (`loss_per_s`): it is no error of the forecast.
        chance = max(1.0, memory.dispersion.value) / (foretold * window_s)
        error = math.log(found / foretold)
        ratio = math.exp(math.copysign(math.sqrt(max(0.0, error * error - chance)), error))
        index = sum(ratio > edge for edge in _EDGES)
        fade = 0.5 ** (window_s / _SPREAD_HALF_LIFE_S)
        spread = tuple(weight * fade + (1.0 if at == index else 0.0) for at, weight in enumerate(spread))
        fade = 0.5 ** (window_s / _EXPERT_HALF_LIFE_S)
        errors = tuple(
            error * fade + (1.0 - fade) * min(4.0, math.log(found / (rate + 1.0 / window_s)) ** 2)
            for error, rate in zip(errors, forecast.predictors, strict=True)
        )
        pending = tuple(forecast for forecast in pending if forecast.at_s > now_s - lead_s)
    return replace(
        memory,
        spread=spread,
        errors=errors,
        pending=(*pending[-63:], made),
        window_requests=0.0,
        window_s=0.0,
        peak_per_s=max(peak_per_s, memory.window_requests / memory.window_s),
    )
