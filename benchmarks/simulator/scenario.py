"""The fleet that a simulation runs on: pools with prices, bounds, speeds and cold starts; the SLO; outages."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.router.prediction import StepModel


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScenarioError(Exception):
    """The file is no scenario. Says what and where."""


class Slo(_Section):
    """A request meets it when its first token is there within ``ttft_s`` and the others follow at ``tpot_s`` or
    less."""

    ttft_s: float = Field(gt=0)
    tpot_s: float = Field(gt=0)
    objective: float = Field(default=0.99, gt=0, lt=1)
    """Share of requests that must meet it."""


class Cost(_Section):
    """The operator's bounds, as in the config."""

    target_usd_per_million_tokens: float | None = Field(default=None, gt=0)
    max_usd_per_hour: float | None = Field(default=None, gt=0)


class Replicas(_Section):
    """Bounds, and how many are up when the trace starts."""

    min: int = Field(ge=0)
    max: int = Field(ge=1)
    initial: int = Field(default=0, ge=0)


class ColdStart(_Section):
    """From the decision to ready: log-normal."""

    mean_s: float = Field(gt=0)
    cv: float = Field(default=0.0, ge=0)


class Fallback(_Section):
    """What the pool may take over: the longest prompt, and the longest answer to be expected."""

    max_prompt_tokens: int = Field(ge=1)
    max_output_tokens: int = Field(ge=1)


class Engine(_Section):
    """Coefficients and bounds of one replica: see serving/router/prediction.py."""

    c0_s: float = Field(gt=0)
    c1_s_per_sequence: float = Field(ge=0)
    ckv_s_per_token: float = Field(ge=0)
    cp_s_per_token: float = Field(gt=0)
    max_num_batched_tokens: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    kv_capacity_tokens: int = Field(ge=1)

    @property
    def step_model(self) -> StepModel:
        return StepModel(**self.model_dump())


class Pool(_Section):
    """Replicas of one kind at one price per hour each, billed from the decision to start one until it has stopped."""

    name: str
    usd_per_hour: float = Field(ge=0)
    replicas: Replicas
    cold_start: ColdStart
    engine: Engine
    fallback: Fallback | None = None


class Outage(_Section):
    """From ``start_s`` to ``end_s`` at most ``max_replicas`` of a pool exist: others die, starting ones hang."""

    pool: str
    start_s: float = Field(ge=0)
    end_s: float = Field(gt=0)
    max_replicas: int = Field(ge=0)


class Scenario(_Section):
    """All of it."""

    slo: Slo
    decision_interval_s: float = Field(default=5.0, gt=0)
    cost: Cost = Cost()
    is_shedding: bool = False
    pools: tuple[Pool, ...] = Field(min_length=1)
    outages: tuple[Outage, ...] = ()

    @property
    def primary_index(self) -> int:
        """The pool that a policy for one pool scales: the first that is no fallback."""
        return next(index for index, pool in enumerate(self.pools) if pool.fallback is None)

    @property
    def primary(self) -> Pool:
        return self.pools[self.primary_index]

    def only(self, *names: str) -> "Scenario":
        """The same with these pools alone."""
        return self.model_copy(
            update={
                "pools": tuple(pool for pool in self.pools if pool.name in names),
                "outages": tuple(outage for outage in self.outages if outage.pool in names),
            }
        )

    def with_cold_start(self, pool_name: str, mean_s: float) -> "Scenario":
        """The same with another mean cold start of one pool."""
        pools = tuple(
            pool.model_copy(update={"cold_start": ColdStart(mean_s=mean_s, cv=pool.cold_start.cv)})
            if pool.name == pool_name
            else pool
            for pool in self.pools
        )
        return self.model_copy(update={"pools": pools})


def read_scenario(path: Path) -> Scenario:
    """Raises ScenarioError."""
    try:
        return Scenario.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ScenarioError(f"{path}: {error}") from error
