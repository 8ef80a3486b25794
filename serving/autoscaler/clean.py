"""Figures as they come from a running system, made safe to reckon with: what is no number counts as not known."""

import math
from dataclasses import replace

from serving.autoscaler.types import NUM_PROMPT_BUCKETS, Demand, PoolState, Prices, Work

_MOST = 1e12
"""No count, time or price of ours is bigger; what is, is a mistake."""
_DEAREST_USD_PER_HOUR = 1e6


def clean_number(value: float, default: float = 0.0, least: float = 0.0) -> float:
    """``value`` within [``least``, 1e12]; ``default`` if it is NaN or no number."""
    if not isinstance(value, int | float) or math.isnan(value):
        return default
    return min(max(value, least), max(_MOST, least)) if math.isfinite(value) else default


def clean_count(value: float) -> int:
    """A whole number of at least 0."""
    return int(clean_number(value))


def _are_sane(figures: tuple[float, ...]) -> bool:
    """Whether none needs cleaning; NaN fails both comparisons or is in the sum."""
    return min(figures) >= 0.0 and sum(figures) < _MOST


def clean_demand(demand: Demand) -> Demand:
    """Every figure finite and at least 0."""
    figures = (
        demand.interval_s, demand.num_arrived, demand.prompt_tokens, demand.num_finished, demand.output_tokens,
        demand.num_met, demand.num_missed, demand.num_turned_away, demand.turned_away_prompt_tokens,
        demand.num_queued, demand.num_late, demand.late_prompt_tokens, demand.oldest_late_s, *demand.prompts,
    )  # fmt: skip
    if _are_sane(figures) and len(demand.prompts) == NUM_PROMPT_BUCKETS:
        return demand
    prompts = tuple(clean_count(number) for number in demand.prompts[:NUM_PROMPT_BUCKETS])
    return Demand(
        interval_s=clean_number(demand.interval_s),
        num_arrived=clean_count(demand.num_arrived),
        prompt_tokens=clean_count(demand.prompt_tokens),
        prompts=prompts + (0,) * (NUM_PROMPT_BUCKETS - len(prompts)),
        num_finished=clean_count(demand.num_finished),
        output_tokens=clean_count(demand.output_tokens),
        num_met=clean_count(demand.num_met),
        num_missed=clean_count(demand.num_missed),
        num_turned_away=clean_count(demand.num_turned_away),
        turned_away_prompt_tokens=clean_count(demand.turned_away_prompt_tokens),
        num_queued=clean_count(demand.num_queued),
        num_late=clean_count(demand.num_late),
        late_prompt_tokens=clean_count(demand.late_prompt_tokens),
        oldest_late_s=clean_number(demand.oldest_late_s),
    )


def clean_state(state: PoolState) -> PoolState:
    """Every figure finite and at least 0."""
    work = state.work
    figures = (
        state.num_ready, state.num_came_up, *state.starting_age_s, *state.cold_starts_s,
        work.num_steps, work.prefill_tokens, work.decode_tokens, work.kv_token_steps, work.busy_s,
    )  # fmt: skip
    if _are_sane(figures) and isinstance(state.num_ready, int):
        return state
    return replace(
        state,
        num_ready=clean_count(state.num_ready),
        num_came_up=clean_count(state.num_came_up),
        starting_age_s=tuple(clean_number(age_s) for age_s in state.starting_age_s),
        cold_starts_s=tuple(clean_number(cold_start_s) for cold_start_s in state.cold_starts_s),
        work=Work(
            num_steps=clean_count(work.num_steps),
            prefill_tokens=clean_count(work.prefill_tokens),
            decode_tokens=clean_count(work.decode_tokens),
            kv_token_steps=clean_number(work.kv_token_steps),
            busy_s=clean_number(work.busy_s),
        ),
    )


def clean_price(prices: Prices, pool: str) -> float:
    """US dollars per hour. A pool without a price that makes sense counts as very dear: it is the last to be used."""
    price = prices.get(pool, math.nan)
    is_price = isinstance(price, int | float) and math.isfinite(price) and price >= 0.0
    return min(price, _DEAREST_USD_PER_HOUR) if is_price else _DEAREST_USD_PER_HOUR
