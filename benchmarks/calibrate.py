"""What a step of the running engine costs: ``python -m benchmarks.calibrate [--config FILE] [--json FILE]``.

Starts the config's server with one replica of each pool that can be placed, sends it prompts of several lengths at
several concurrencies, and reads what the replica has fitted to its own steps (`serving/engine/step_meter.py`). Then it
sends what was not among them, and says how far the fit's predictions of TTFT and TPOT are off.

Prints the ``speed`` section for each pool of the config: with it an autoscaler starts out knowing what it would
otherwise learn in its first minute.
"""

import argparse
import asyncio
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import environment
from benchmarks.load.mistake import BenchError
from benchmarks.load.traffic import Driver, Due, Sent, percentile
from benchmarks.server import RunningServer, running
from serving.config import load_config, parse_config
from serving.config.speed import Speed
from serving.machine import Machine, observe_machine
from serving.plan import plan, read_specs
from serving.router.prediction import StepModel, prefill_tokens_per_s

PROMPT_TOKENS = (32, 128, 512, 2048)
CONCURRENCIES = (1, 4, 16, 48)
HELD_OUT = ((256, 8), (64, 32), (1024, 2))
"""(prompt tokens, concurrency) of the requests that are predicted."""
OUTPUT_TOKENS = 64
NUM_EACH = 3
FIRST_ID, LAST_ID = 300, 900
"""Token ids that any vocabulary of a thousand has, special ones left out."""
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One prediction: medians of what was measured, and what the fit says of it."""

    prompt_tokens: int
    concurrency: int
    tpot_s: float
    predicted_tpot_s: float
    ttft_s: float
    predicted_ttft_s: float

    @property
    def tpot_error(self) -> float:
        return self.predicted_tpot_s / self.tpot_s - 1.0

    @property
    def ttft_error(self) -> float:
        return self.predicted_ttft_s / self.ttft_s - 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """One pool."""

    model: str
    pool: str
    step_model: StepModel
    held_out: tuple[HeldOut, ...]

    def as_config(self) -> dict[str, float]:
        """The pool's ``speed`` section."""
        found = self.step_model
        speed = Speed(
            step_s=found.c0_s,
            sequence_s=found.c1_s_per_sequence,
            kv_token_s=found.ckv_s_per_token,
            prompt_token_s=found.cp_s_per_token,
        )
        return {name: float(f"{value:.4g}") for name, value in speed.model_dump().items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(
        prog="ballast bench calibrate",
        description=__doc__,
        epilog="Exit codes: 0 measured; 1 a server did not start, or requests failed; 2 the config is wrong. "
        "Example: ballast bench calibrate --config ballast.yaml --json speed.json",
    )
    parser.add_argument("--config", type=Path, default=Path("ballast.yaml"), help="default: ./ballast.yaml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args(arguments)
    head = environment.describe()
    found = []
    for model, pool, config in single_pools(options.config, observe_machine(Path.cwd())):
        with running(config) as server:
            found.append(asyncio.run(calibrate(server, model, pool)))
        _print(found[-1])
    if options.json:
        pools = [
            {
                **asdict(each),
                "speed": each.as_config(),
                "median_tpot_error": statistics.median(abs(row.tpot_error) for row in each.held_out),
                "median_ttft_error": statistics.median(abs(row.ttft_error) for row in each.held_out),
            }
            for each in found
        ]
        environment.write(options.json, {**head, "pools": pools})
    return 0


def single_pools(path: Path, machine: Machine) -> list[tuple[str, str, dict[str, Any]]]:
    """For each pool of a config that can be placed on ``machine``, its model's name, its own, and a config of it alone
    with one replica; why the others cannot is printed. Raises BenchError where none can."""
    found = []
    for model in load_config(path).model_dump(mode="json")["models"]:
        for pool in model["pools"]:
            only = alone(model, pool)
            if problem := _problem_of(only, machine):
                print(f"{model['name']}/{pool['name']} is left out: {problem}", file=sys.stderr)
            else:
                found.append((model["name"], pool["name"], only))
    if not found:
        raise BenchError(f"{path}: none of its pools can be placed here; `ballast check --config {path}` says why")
    return found


def _problem_of(document: dict[str, Any], machine: Machine) -> str | None:
    """Why the config cannot start; None: nothing is known to be in the way."""
    config = parse_config(yaml.safe_dump(document), Path.cwd())
    return next((finding.message for finding in plan(config, machine, read_specs(config)).errors), None)


def alone(model: dict[str, Any], pool: dict[str, Any], num_replicas: int = 1) -> dict[str, Any]:
    """A config of one pool, with as many replicas from the start to the end."""
    only = {**pool, "replicas": {"min": num_replicas, "max": num_replicas}, "fallback": None}
    # A target and a ceiling are for the autoscaler, which has nothing to decide here.
    return {"models": [{**model, "pools": [only], "cost": {}}], "autoscaler": {"mode": "recommend"}}


async def calibrate(server: RunningServer, model: str, pool: str) -> Calibration:
    """Of the one pool of a running server."""
    rng = random.Random(0)
    await _batch(server, model, 1, 16, rng)
    for prompt_tokens in PROMPT_TOKENS:
        for concurrency in CONCURRENCIES:
            await _batch(server, model, concurrency, prompt_tokens, rng)
    await asyncio.sleep(SETTLE_S)
    load = (await asyncio.to_thread(server.status))["replicas"][0]["load"]
    step_model = StepModel.of(load)
    held_out = [
        _compare(step_model, prompt_tokens, concurrency, await _batch(server, model, concurrency, prompt_tokens, rng))
        for prompt_tokens, concurrency in HELD_OUT
    ]
    return Calibration(model, pool, step_model, tuple(held_out))


async def _batch(
    server: RunningServer, model: str, concurrency: int, prompt_tokens: int, rng: random.Random
) -> list[Sent]:
    """``NUM_EACH`` waves of ``concurrency`` requests at once. Raises RuntimeError when one fails."""
    found: list[Sent] = []
    for _ in range(NUM_EACH):
        driver = Driver(server.port, model)
        prompts = [tuple(rng.randint(FIRST_ID, LAST_ID) for _ in range(prompt_tokens)) for _ in range(concurrency)]
        found += await asyncio.gather(*(driver.send(Due(0.0, prompt, OUTPUT_TOKENS)) for prompt in prompts))
    if failed := [sent.error for sent in found if not sent.is_whole]:
        raise RuntimeError(f"{len(failed)} of {len(found)} requests failed: {failed[0]}")
    return found


def _compare(model: StepModel, prompt_tokens: int, concurrency: int, sent: Sequence[Sent]) -> HeldOut:
    running_ = min(concurrency, model.max_num_seqs)
    kv_tokens = running_ * (prompt_tokens + OUTPUT_TOKENS / 2)
    tpots = sorted((each.end_s - each.first_s) / (OUTPUT_TOKENS - 1) for each in sent)
    # All prompts of a wave come at once: the median one waits for half of them.
    waiting_tokens = prompt_tokens * (concurrency + 1) / 2
    return HeldOut(
        prompt_tokens=prompt_tokens,
        concurrency=concurrency,
        tpot_s=percentile(tpots, 0.5),
        predicted_tpot_s=round(model.step_s(running_, kv_tokens), 5),
        ttft_s=percentile(sorted(each.ttft_s for each in sent), 0.5),
        predicted_ttft_s=round(waiting_tokens / prefill_tokens_per_s(model, running_ / 2, kv_tokens / 2), 5),
    )


def _print(found: Calibration) -> None:
    print(f"# {found.model}, pool {found.pool}")
    print(yaml.safe_dump({"speed": found.as_config()}, sort_keys=False).rstrip())
    for row in found.held_out:
        print(
            f"#   {row.prompt_tokens:5} prompt tokens x {row.concurrency:2}: TPOT {row.tpot_s * 1e3:.1f} ms, predicted "
            f"{row.predicted_tpot_s * 1e3:.1f} ({row.tpot_error:+.0%}); TTFT {row.ttft_s * 1e3:.0f} ms, predicted "
            f"{row.predicted_ttft_s * 1e3:.0f} ({row.ttft_error:+.0%})"
        )


if __name__ == "__main__":
    sys.exit(main())
