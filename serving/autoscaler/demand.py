"""What demand will be when a replica asked for now is ready, learned from what it was.

Demand is counted in *mean requests* per second: a request with a prompt of twice the mean length counts as that much
more as the prompt's share of a mean request's work says. So a minute of short requests reads as the light minute that
it is.

Four simple predictors of that rate (means over half a minute, two and ten minutes, and a damped trend) are judged by
how well each foretold the rate one lead time later; their weighted geometric mean is the forecast. Where the last half
minute is above it by more than chance, and by more than this workload's surprises have been, the load has changed: then
the last half minute is the forecast.

What a forecast is worth is learned too (`shadow_fleets.py`). A histogram of the ratios rate found / rate foretold says
the same of single minutes, for the pools that take over when the primary ones are at zero.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from serving.autoscaler.shadow_fleets import RATIOS, Foresight, Shadows, fed, prior_spread, retold
from serving.autoscaler.types import NUM_PROMPT_BUCKETS, Demand

_EDGES = tuple(math.sqrt(low * high) for low, high in pairwise(RATIOS))
_MIN_INTERVAL_S = 0.01
"""Less time than this says nothing of a rate."""
_EVERY_S = 60.0
"""A forecast is made this often, and compared with the mean rate of this long."""
_FIRST_FORECAST_S = 50.0
"""No forecast made before this much was seen is judged: it would be remembered for hours."""
_SPREAD_HALF_LIFE_S = 2 * 3600.0
_PEAK_HALF_LIFE_S = 12 * 3600.0
_EXPERT_HALF_LIFE_S = 3600.0
_ABOVE_PEAK = 1.1
_ABOVE_FORECAST = 1.3
"""A surprise may lead this far above the highest rate seen, or above the forecast: in a burst the ratios of quiet
minutes to bursts would foretell a burst on top of the burst."""
_SHARPNESS = 4.0
"""How fast a worse predictor loses weight, per squared e-fold of mean error, times _ERROR_SCALE."""
_ERROR_SCALE = 50.0

_FAST_S, _MIDDLE_S, _SLOW_S, _MIX_S, _HOUR_S, _DAY_S = 30.0, 120.0, 600.0, 1800.0, 3600.0, 86_400.0
_WINDOWS_S = (_FAST_S, _MIDDLE_S, _SLOW_S, _MIX_S, _HOUR_S, _DAY_S)
_TREND_DAMPING = 0.6
_MORE_THAN_CHANCE = 4.0
"""Standard deviations of a count of arrivals that come at random."""
_UNHEARD_OF = 0.01
"""A surprise of this size or more, as a share of all minutes seen: the load has changed. Loads that burst all the time
have none such.
"""
_MIN_RATE_PER_S = 1e-6
_UNKNOWN_OUTPUT_TOKENS = 100.0
_PER_REQUEST_FADE = 0.998
"""What one more request leaves of the weight of those before, in what is known of lengths."""


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
    """What was foretold at one time: by each predictor, by all together, and by the steady view."""

    at_s: float
    predictors: tuple[float, ...]
    nimble_per_s: float
    steady_per_s: float


_NO_SHADOWS = Shadows()


@dataclass(frozen=True, slots=True)
class DemandMemory:
    """What is remembered of demand. A fresh one knows nothing and says so (``seen_s`` 0). Rates are in mean requests
    per second."""

    seen_s: float = 0.0
    fast: Mean = _UNKNOWN
    middle: Mean = _UNKNOWN
    slow: Mean = _UNKNOWN
    hour: Mean = _UNKNOWN
    day: Mean = _UNKNOWN
    """Requests per second."""
    prompt: Mean = _UNKNOWN
    """Prompt tokens per second, over the mix's window; likewise the next."""
    mix: Mean = _UNKNOWN
    """Requests per second."""
    output: Mean = _UNKNOWN
    """Tokens of an answer, by finished request."""
    buckets: tuple[float, ...] = (0.0,) * NUM_PROMPT_BUCKETS
    spread: tuple[float, ...] = prior_spread()
    """How often each ratio of the rate found to the rate foretold was seen."""
    nimble: Shadows = _NO_SHADOWS
    steady: Shadows = _NO_SHADOWS
    errors: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """Mean squared log error of each predictor."""
    pending: tuple[Forecasts, ...] = ()
    """Forecasts that wait for their time to come."""
    window_requests: float = 0.0
    window_s: float = 0.0
    peak_per_s: float = 0.0
    """The highest rate of any such window, fading."""

    @property
    def prompt_tokens(self) -> float:
        """Mean length of a prompt."""
        mix_per_s = self.mix.value
        return max(1.0, self.prompt.value / mix_per_s) if mix_per_s > 0.0 else 1.0

    @property
    def output_tokens(self) -> float:
        """Mean length of an answer."""
        return max(1.0, self.output.value) if self.output.weight > 0.0 else _UNKNOWN_OUTPUT_TOKENS


class Service(NamedTuple):
    """What of the primary pool shapes demand: how much of a mean request's work its prompt is, and how many seconds of
    work may wait there before a request misses its TTFT."""

    prompt_share: float
    slack_s: float


class Outlook(NamedTuple):
    """What `decide` plans for."""

    nimble: Foresight
    """The predictors' forecast: follows a load that moves slower than a replica starts."""
    steady: Foresight
    """The mean of the last hour, or of the last ten minutes if that is higher: for bursts that come and go faster."""
    present_per_s: float
    day_per_s: float
    mix_per_s: float
    """Mean over half an hour."""
    ratios: Sequence[tuple[float, float]]
    """(rate / nimble forecast, probability)"""
    peak_per_s: float
    prompt_tokens: float
    output_tokens: float
    buckets: tuple[float, ...]
    """Share of prompts by length."""


def learn(
    memory: DemandMemory, demand: Demand, dt_s: float, now_s: float, lead_s: float, service: Service
) -> DemandMemory:
    """Take in what came during the last ``dt_s`` seconds."""
    if dt_s < _MIN_INTERVAL_S:
        return memory
    number = demand.num_arrived
    fast_fade, middle_fade, slow_fade, mix_fade, hour_fade, day_fade = _fades(dt_s)
    prompt = memory.prompt.after(demand.prompt_tokens / dt_s, mix_fade)
    mix = memory.mix.after(number / dt_s, mix_fade)
    output, buckets, arrived = memory.output, memory.buckets, 0.0
    if demand.num_finished > 0:
        output = output.after(demand.output_tokens / demand.num_finished, _PER_REQUEST_FADE**demand.num_finished)
    if number > 0:
        fade = _PER_REQUEST_FADE**number
        buckets = tuple([old * fade + new for old, new in zip(buckets, demand.prompts or _NO_PROMPTS, strict=True)])
        mean_tokens = max(1.0, prompt.value / mix.value)
        arrived = (1.0 - service.prompt_share) * number + service.prompt_share * demand.prompt_tokens / mean_tokens
    rate_per_s = arrived / dt_s
    memory = DemandMemory(
        seen_s=memory.seen_s + dt_s,
        fast=memory.fast.after(rate_per_s, fast_fade),
        middle=memory.middle.after(rate_per_s, middle_fade),
        slow=memory.slow.after(rate_per_s, slow_fade),
        hour=memory.hour.after(rate_per_s, hour_fade),
        day=memory.day.after(number / dt_s, day_fade),
        prompt=prompt,
        mix=mix,
        output=output,
        buckets=buckets,
        spread=memory.spread,
        nimble=fed(memory.nimble, arrived, dt_s, service.slack_s),
        steady=fed(memory.steady, arrived, dt_s, service.slack_s),
        errors=memory.errors,
        pending=memory.pending,
        window_requests=memory.window_requests + arrived,
        window_s=memory.window_s + dt_s,
        peak_per_s=memory.peak_per_s,
    )
    return _judge(memory, now_s, lead_s) if memory.window_s >= _EVERY_S else memory


def outlook(memory: DemandMemory, lead_s: float) -> Outlook:
    """What to expect ``lead_s`` from now."""
    num_known = sum(memory.buckets)
    return Outlook(
        nimble=Foresight(_nimble_per_s(memory, _predictors(memory, lead_s)), memory.nimble),
        steady=Foresight(_steady_per_s(memory), memory.steady),
        present_per_s=memory.middle.value,
        day_per_s=memory.day.value,
        mix_per_s=memory.mix.value,
        ratios=_probabilities(memory.spread),
        peak_per_s=memory.peak_per_s,
        prompt_tokens=memory.prompt_tokens,
        output_tokens=memory.output_tokens,
        buckets=tuple([count / num_known for count in memory.buckets]) if num_known > 0.0 else memory.buckets,
    )


def ceiling_per_s(seen: Outlook, rate_per_s: float) -> float:
    """No more than this is planned for when ``rate_per_s`` is expected."""
    return max(_ABOVE_FORECAST * rate_per_s, _ABOVE_PEAK * seen.peak_per_s)


_NO_PROMPTS = (0,) * NUM_PROMPT_BUCKETS


@functools.lru_cache(maxsize=64)
def _fades(dt_s: float) -> tuple[float, ...]:
    """What ``dt_s`` seconds leave of each of the means."""
    return tuple(math.exp(-dt_s / window_s) for window_s in _WINDOWS_S)


@functools.lru_cache(maxsize=64)
def _probabilities(spread: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    total = sum(spread)
    return tuple((ratio, weight / total) for ratio, weight in zip(RATIOS, spread, strict=True))


def _predictors(memory: DemandMemory, lead_s: float) -> tuple[float, ...]:
    fast, middle, slow = memory.fast.value, memory.middle.value, memory.slow.value
    slope_per_s2 = (middle - slow) / (_SLOW_S - _MIDDLE_S)
    trend = middle + _TREND_DAMPING * slope_per_s2 * (lead_s + _MIDDLE_S)
    rates = (fast, middle, slow, min(trend, 2.0 * max(fast, middle)))
    return tuple([rate if rate > _MIN_RATE_PER_S else _MIN_RATE_PER_S for rate in rates])


def _combined(memory: DemandMemory, predictors: tuple[float, ...]) -> float:
    best = min(memory.errors)
    weights = [math.exp(-min(50.0, _SHARPNESS * _ERROR_SCALE * (error - best))) for error in memory.errors]
    return math.exp(
        sum([weight * math.log(rate) for weight, rate in zip(weights, predictors, strict=True)]) / sum(weights)
    )


def _nimble_per_s(memory: DemandMemory, predictors: tuple[float, ...]) -> float:
    """What the predictors say together, or the last half minute where the load has changed."""
    combined_per_s, fast_per_s = _combined(memory, predictors), predictors[0]
    if (fast_per_s - combined_per_s) * _FAST_S < _MORE_THAN_CHANCE * math.sqrt(fast_per_s * _FAST_S):
        return combined_per_s
    ratio = fast_per_s / combined_per_s
    num_such = sum([weight for each, weight in zip(RATIOS, memory.spread, strict=True) if each >= ratio])
    return fast_per_s if num_such < _UNHEARD_OF * sum(memory.spread) else combined_per_s


def _steady_per_s(memory: DemandMemory) -> float:
    return max(_MIN_RATE_PER_S, memory.hour.value, memory.slow.value)


def _judge(memory: DemandMemory, now_s: float, lead_s: float) -> DemandMemory:
    """Compare what was foretold for now with what came, and foretell again."""
    window_s = memory.window_s
    predictors = _predictors(memory, lead_s)
    made = Forecasts(now_s, predictors, _nimble_per_s(memory, predictors), _steady_per_s(memory))
    fade = 0.5 ** (window_s / _SPREAD_HALF_LIFE_S)
    spread, errors, pending = memory.spread, memory.errors, memory.pending
    if memory.seen_s >= _FIRST_FORECAST_S:
        pending = (*pending[-63:], made)
    due = [forecast for forecast in pending if forecast.at_s <= now_s - lead_s]
    if due:
        # One request more on both sides: without it a quiet minute would read as an infinite surprise.
        found = (memory.window_requests + 1.0) / window_s
        ratio = found / (due[-1].nimble_per_s + 1.0 / window_s)
        index = sum(ratio > edge for edge in _EDGES)
        spread = tuple([weight * fade + (1.0 if at == index else 0.0) for at, weight in enumerate(spread)])
        expert_fade = 0.5 ** (window_s / _EXPERT_HALF_LIFE_S)
        errors = tuple(
            [
                error * expert_fade + (1.0 - expert_fade) * min(4.0, math.log(found / (rate + 1.0 / window_s)) ** 2)
                for error, rate in zip(errors, due[-1].predictors, strict=True)
            ]
        )
        pending = tuple([forecast for forecast in pending if forecast.at_s > now_s - lead_s])
    return replace(
        memory,
        spread=spread,
        nimble=retold(memory.nimble, due[-1].nimble_per_s if due else memory.nimble.foretold_per_s, fade),
        steady=retold(memory.steady, due[-1].steady_per_s if due else memory.steady.foretold_per_s, fade),
        errors=errors,
        pending=pending,
        window_requests=0.0,
        window_s=0.0,
        peak_per_s=max(memory.peak_per_s * 0.5 ** (window_s / _PEAK_HALF_LIFE_S), memory.window_requests / window_s),
    )
