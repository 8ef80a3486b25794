"""From what Ray Serve and our own processes report to what `decide` is told: differences of counters, ages of starts.

Pure but for what it remembers between two looks. A process that is seen for the first time gives no difference: what
it counted before belongs to another time. One that was silent for a while is remembered: its next word covers the gap.
A figure that is no number counts as 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from serving.autoscaler.clean import clean_count, clean_number
from serving.autoscaler.types import NUM_PROMPT_BUCKETS, Demand, PoolState, Work
from serving.protocol.stats import DemandStats, PoolStats
from serving.router.prediction import StepModel

_COUNTERS = ("num_arrived", "prompt_tokens", "num_finished", "output_tokens", "num_met", "num_missed")
_WORK = ("num_steps", "prefill_tokens", "decode_tokens", "kv_token_steps", "busy_s")


@dataclass(frozen=True, slots=True)
class PoolReading:
    """A pool: the replicas that run and how many it is to have, as Ray Serve says, and what each gateway last said."""

    running: frozenset[str]
    target: int
    gateways: Mapping[str, PoolStats] = field(default_factory=dict)
    is_placeable: bool = True


@dataclass(frozen=True, slots=True)
class _Start:
    """A replica on its way. One that was so at the first look began at a time that nobody knows, and often waited for
    what starts with the server: what it took says nothing of the next one."""

    since_s: float
    is_whole: bool


@dataclass(slots=True)
class PoolObserver:
    """One pool's memory between two looks."""

    _running: frozenset[str] | None = None
    _starting: list[_Start] = field(default_factory=list)
    _heard: frozenset[str] = frozenset()
    _bases: dict[str, dict[str, float]] = field(default_factory=dict)
    """By gateway: what it had not counted of the total when it was first heard."""
    _total: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_WORK, 0.0))
    _model: StepModel | None = None

    def look(self, reading: PoolReading, now_s: float) -> PoolState:
        """What has changed since the last look."""
        came_up = reading.running - self._running if self._running is not None else frozenset[str]()
        cold_starts_s = self._follow_starts(reading, len(came_up), now_s)
        self._running = reading.running
        self._model = next(filter(None, map(_model, reading.gateways.values())), self._model)
        return PoolState(
            num_ready=len(reading.running),
            starting_age_s=tuple(now_s - start.since_s for start in self._starting),
            cold_starts_s=cold_starts_s,
            num_came_up=len(came_up),
            work=self._work(reading.gateways),
            is_placeable=reading.is_placeable,
        )

    def model(self, seed: StepModel) -> StepModel:
        """What a step costs a replica of this pool, as was last heard; ``seed`` where nobody has spoken."""
        return self._model or seed

    def _follow_starts(self, reading: PoolReading, num_came_up: int, now_s: float) -> tuple[float, ...]:
        """What those took that came up since the last look: they had started first."""
        ended, self._starting = self._starting[:num_came_up], self._starting[num_came_up:]
        num_starting = max(0, reading.target - len(reading.running))
        del self._starting[num_starting:]  # given up: the youngest first
        begun = _Start(now_s, is_whole=self._running is not None)
        self._starting += [begun] * (num_starting - len(self._starting))
        return tuple(now_s - start.since_s for start in ended if start.is_whole)

    def _work(self, gateways: Mapping[str, PoolStats]) -> Work:
        """All gateways hear of the same engines: the one that has counted most by now is right. When one is gone, the
        others count on from what it knew."""
        counted = {name: {key: clean_number(getattr(stats, key)) for key in _WORK} for name, stats in gateways.items()}
        before, total = self._total, dict(self._total)
        for name in self._bases.keys() & counted.keys():
            for key, number in counted[name].items():
                total[key] = max(total[key], self._bases[name][key] + number)
        is_one_gone = not self._heard <= counted.keys()
        for name, numbers in counted.items():
            if is_one_gone or name not in self._bases:
                self._bases[name] = {key: total[key] - number for key, number in numbers.items()}
        self._heard, self._total = frozenset(counted), total
        done = {key: total[key] - before[key] for key in _WORK}
        return Work(
            num_steps=clean_count(done["num_steps"]),
            prefill_tokens=clean_count(done["prefill_tokens"]),
            decode_tokens=clean_count(done["decode_tokens"]),
            kv_token_steps=clean_number(done["kv_token_steps"]),
            busy_s=clean_number(done["busy_s"]),
        )


def _model(stats: PoolStats) -> StepModel | None:
    """None: the gateway has not heard of a replica."""
    model = StepModel(
        c0_s=clean_number(stats.c0_s),
        c1_s_per_sequence=clean_number(stats.c1_s_per_sequence),
        ckv_s_per_token=clean_number(stats.ckv_s_per_token),
        cp_s_per_token=clean_number(stats.cp_s_per_token),
        max_num_batched_tokens=clean_count(stats.max_num_batched_tokens),
        max_num_seqs=clean_count(stats.max_num_seqs),
        kv_capacity_tokens=clean_count(stats.kv_capacity_tokens),
    )
    return model if model.cp_s_per_token and model.max_num_batched_tokens and model.max_num_seqs else None


@dataclass(frozen=True, slots=True)
class GatewayReading:
    """What one gateway last said of one model."""

    stats: DemandStats
    prompts: tuple[float, ...] = (0.0,) * NUM_PROMPT_BUCKETS


@dataclass(slots=True)
class DemandObserver:
    """One model's memory between two looks."""

    _before: dict[str, GatewayReading] = field(default_factory=dict)
    _last_s: float | None = None

    def look(self, gateways: Mapping[str, GatewayReading], now_s: float) -> Demand:
        """What came in through all gateways since the last look."""
        total = dict.fromkeys(_COUNTERS, 0.0)
        prompts = [0.0] * NUM_PROMPT_BUCKETS
        for name, reading in gateways.items():
            before = self._before.get(name)
            if before is None:
                continue
            for key in _COUNTERS:
                total[key] += max(0.0, getattr(reading.stats, key) - getattr(before.stats, key))
            for index, (new, old) in enumerate(zip(reading.prompts, before.prompts, strict=True)):
                prompts[index] += max(0.0, new - old)
        interval_s = now_s - self._last_s if self._last_s is not None else 0.0
        self._before |= gateways
        self._last_s = now_s
        return replace(
            _waiting([reading.stats for reading in gateways.values()]),
            interval_s=interval_s,
            prompts=tuple(clean_count(number) for number in prompts),
            **{key: clean_count(number) for key, number in total.items()},
        )


def _waiting(gateways: Sequence[DemandStats]) -> Demand:
    """What waits now, in all gateways."""
    return Demand(
        interval_s=0.0,
        num_queued=sum(clean_count(stats.num_queued) for stats in gateways),
        num_late=sum(clean_count(stats.num_late) for stats in gateways),
        late_prompt_tokens=sum(clean_count(stats.late_prompt_tokens) for stats in gateways),
        oldest_late_s=max((clean_number(stats.oldest_late_s) for stats in gateways), default=0.0),
        num_turned_away=sum(clean_count(stats.num_turned_away) for stats in gateways),
        turned_away_prompt_tokens=sum(clean_count(stats.turned_away_prompt_tokens) for stats in gateways),
    )
