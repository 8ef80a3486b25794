"""One model's autoscaler in a running server: from readings to decisions, and to what the gateways are told."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.autoscaler.controller import Looked, ModelAutoscaler, prices_of, spec_of
from serving.autoscaler.decisions import FILE_NAME, Decision, DecisionLog, Start, read_file, replay
from serving.autoscaler.observe import GatewayReading, PoolReading
from serving.autoscaler.types import NUM_PROMPT_BUCKETS, FallbackBounds, prompt_bucket
from serving.config import Config
from serving.config.autoscaler import AutoscalerConfig
from serving.config.model import ModelConfig
from serving.config.speed import CUDA_SPEED
from serving.protocol.stats import DemandStats, PoolStats

GPU = {
    "name": "gpu", "device": "cuda", "gpus_per_replica": 1, "usd_per_hour": 3.6, "replicas": {"min": 0, "max": 8},
    "cold_start_s": 100.0, "engine": {"max_num_seqs": 64},
}  # fmt: skip
CPU = {
    "name": "cpu", "device": "cpu", "cpus_per_replica": 4, "usd_per_hour": 1.2, "replicas": {"min": 0, "max": 3},
    "fallback": {"max_prompt_tokens": 512, "max_output_tokens": 128},
    "speed": {"step_s": 0.05, "sequence_s": 0.001, "kv_token_s": 1e-6, "prompt_token_s": 0.002},
}  # fmt: skip
MEASURED = PoolStats(
    num_steps=100.0, prefill_tokens=9000.0, decode_tokens=800.0, kv_token_steps=1e6, busy_s=4.0,
    c0_s=0.0123456789, c1_s_per_sequence=3e-5, ckv_s_per_token=5e-8, cp_s_per_token=9e-5,
    max_num_batched_tokens=8192.0, max_num_seqs=64.0, kv_capacity_tokens=500_000.0,
)  # fmt: skip


def model_of(*pools: dict[str, Any], **changes: Any) -> ModelConfig:
    fields = {"name": "demo", "source": "owner/name", "pools": list(pools or (GPU, CPU)), **changes}
    return Config.model_validate({"models": [fields]}).models[0]


class Server:
    """Readings of a server under a steady load, and its autoscaler."""

    def __init__(self, model: ModelConfig | None = None, config: AutoscalerConfig | None = None) -> None:
        self.autoscaler = ModelAutoscaler(model or model_of(), config or AutoscalerConfig())
        self.now_s = 1000.0
        self.num_arrived = 0.0
        self.running: dict[str, list[str]] = {"gpu": [], "cpu": []}
        self.target = {"gpu": 0, "cpu": 0}
        self.unplaceable: set[str] = set()
        self.stats = {"gpu": PoolStats(), "cpu": PoolStats()}

    def look(self, num_arrived: float = 0.0, pools: Sequence[str] = ("gpu", "cpu")) -> tuple[Decision, Start]:
        """Two seconds later."""
        self.now_s += 2.0
        self.num_arrived += num_arrived
        prompts = [0.0] * NUM_PROMPT_BUCKETS
        prompts[prompt_bucket(1000)] = self.num_arrived
        total = self.num_arrived
        stats = DemandStats(
            num_arrived=total, prompt_tokens=1000 * total, num_finished=total, output_tokens=200 * total, num_met=total
        )
        readings = {
            pool: PoolReading(
                frozenset(self.running[pool]), self.target[pool], {"g": self.stats[pool]}, pool not in self.unplaceable
            )
            for pool in pools
        }
        return self.autoscaler.decide(Looked(readings, {"g": GatewayReading(stats, tuple(prompts))}), self.now_s)

    def run(self, num_looks: int, num_arrived: float) -> list[tuple[Decision, Start]]:
        return [self.look(num_arrived) for _ in range(num_looks)]


# ------------------------------------------------------------------------------------------------------ from the config


def test_the_spec_is_what_the_config_says() -> None:
    slo = {"ttft_s": 1.5, "tpot_s": 0.08, "objective": 0.95}
    model = model_of(GPU, CPU, slo=slo, cost={"max_usd_per_hour": 20.0, "target_usd_per_million_tokens": 0.5})
    spec = spec_of(model, AutoscalerConfig(min_hold_s=5.0, relearn_s=6.0, patience_s=7.0, back_off_s=8.0))
    assert (spec.ttft_slo_s, spec.tpot_slo_s, spec.objective) == (1.5, 0.08, 0.95)
    assert (spec.max_usd_per_hour, spec.target_usd_per_million_tokens) == (20.0, 0.5)
    tuning = spec.tuning
    assert (tuning.min_hold_s, tuning.relearn_s, tuning.patience_s, tuning.back_off_s) == (5.0, 6.0, 7.0, 8.0)
    gpu, cpu = spec.pools
    assert (gpu.name, gpu.min_replicas, gpu.max_replicas, gpu.cold_start_s, gpu.fallback) == ("gpu", 0, 8, 100.0, None)
    assert (gpu.model.c0_s, gpu.model.cp_s_per_token) == (CUDA_SPEED[0], CUDA_SPEED[3])
    assert (gpu.model.max_num_seqs, gpu.model.max_num_batched_tokens) == (64, 2048)
    assert cpu.fallback == FallbackBounds(512, 128)
    assert (cpu.model.c0_s, cpu.model.cp_s_per_token) == (0.05, 0.002)
    assert prices_of(model) == {"gpu": 3.6, "cpu": 1.2}


# ------------------------------------------------------------------------------------------------------------ decisions


def test_a_load_gets_replicas() -> None:
    server = Server()
    *_, (decision, _) = server.run(30, num_arrived=8.0)
    assert decision.plan.targets["gpu"] >= 1
    assert (decision.model, decision.demand.num_arrived, decision.is_applied) == ("demo", 8, True)
    assert decision.fleet["gpu"].num_ready == 0


def test_what_is_only_recommended_is_recorded_as_such() -> None:
    server = Server(config=AutoscalerConfig(mode="recommend"))
    decision, _ = server.look()
    assert not decision.is_applied
    told = server.autoscaler.board(decision).pools["gpu"]
    assert (told.is_available, told.can_start) == (True, False), "there is a device, and nobody will start one"


def test_decisions_are_made_with_the_speed_that_was_measured() -> None:
    server = Server()
    server.running["gpu"], server.target["gpu"] = ["a"], 1
    seed = server.look(8.0)[0].step_models
    server.stats["gpu"] = MEASURED
    measured = server.look(8.0)[0].step_models
    assert measured["gpu"] != seed["gpu"]
    assert measured["cpu"] == seed["cpu"]
    assert measured["gpu"].c0_s == 0.01235
    assert measured["gpu"].max_num_batched_tokens == 8192


def test_a_free_prompt_token_is_taken_for_a_very_cheap_one() -> None:
    server = Server()
    server.stats["gpu"] = replace(MEASURED, cp_s_per_token=1e-300, c0_s=0.0)
    decision, _ = server.look(8.0)
    assert decision.step_models["gpu"].cp_s_per_token == 1e-9


def test_whatever_a_server_has_decided_can_be_decided_again_from_its_record(tmp_path: Path) -> None:
    server = Server()
    log = DecisionLog(tmp_path)
    for index in range(60):
        if index == 20:
            server.running["gpu"], server.stats["gpu"] = ["a", "b"], MEASURED
        decision, start = server.look(5.0 + index % 7)
        server.target |= decision.plan.targets
        log.write(decision, start)
    replayed = list(replay(read_file(tmp_path / FILE_NAME)))
    assert len(replayed) == 60
    assert all(each.plan == each.recorded.plan for each in replayed)


# ----------------------------------------------------------------------------------------------- what gateways are told


def test_gateways_are_told_when_the_next_replica_is_expected() -> None:
    server = Server()
    server.target["gpu"] = 2
    server.look()
    server.now_s += 38.0
    decision, _ = server.look()
    cold_start_s = next(reason.cold_start_s for reason in decision.plan.reasons if reason.pool == "gpu")
    told = server.autoscaler.board(decision).pools["gpu"]
    assert (told.num_ready, told.num_starting) == (0, 2)
    assert told.coming_s == pytest.approx(cold_start_s - 40.0)
    assert told.cold_start_s == cold_start_s


def test_a_replica_that_takes_longer_than_expected_is_expected_any_moment() -> None:
    server = Server()
    server.target["gpu"] = 1
    server.look()
    server.now_s += 150.0
    assert server.autoscaler.board(server.look()[0]).pools["gpu"].coming_s == 0.0


def test_gateways_are_told_which_pools_can_start_one_at_all() -> None:
    server = Server()
    server.unplaceable.add("gpu")
    told = server.autoscaler.board(server.look()[0]).pools
    assert (told["gpu"].is_available, told["gpu"].coming_s) == (False, None)
    assert told["cpu"].is_available
    assert (told["gpu"].is_fallback, told["cpu"].is_fallback) == (False, True)


def test_a_pool_that_can_never_be_paid_for_can_start_none() -> None:
    kept = {**CPU, "replicas": {"min": 1, "max": 3}}
    for ceiling, can_start in ((4.7, False), (4.8, True), (None, True)):
        server = Server(model_of(GPU, kept, cost={"max_usd_per_hour": ceiling}))
        told = server.autoscaler.board(server.look()[0]).pools
        assert (told["gpu"].can_start, told["cpu"].can_start) == (can_start, True), ceiling
        assert told["gpu"].is_available


def test_a_pool_that_is_backed_off_from_is_not_available() -> None:
    server = Server(model_of(GPU))
    server.running, server.target["gpu"] = {"gpu": []}, 1
    server.look(8.0, ["gpu"])
    server.now_s += 3600.0
    assert not server.autoscaler.board(server.look(8.0, ["gpu"])[0]).pools["gpu"].is_available


def test_gateways_are_told_what_it_costs_and_what_is_planned() -> None:
    server = Server()
    server.running["gpu"], server.target = ["a"], {"gpu": 1, "cpu": 1}
    server.stats["gpu"] = MEASURED
    server.look(8.0)
    server.stats["gpu"] = replace(MEASURED, num_steps=200.0, prefill_tokens=19_000.0, busy_s=5.0)
    decision, _ = server.look(8.0)
    board = server.autoscaler.board(decision)
    assert board.pools["gpu"].usd_per_hour == pytest.approx(3.6)
    assert board.pools["cpu"].usd_per_hour == pytest.approx(1.2)
    assert board.pools["gpu"].usage_usd_per_million_tokens == pytest.approx(0.1)
    assert board.pools["cpu"].usage_usd_per_million_tokens is None
    assert board.pools["gpu"].target == decision.plan.targets["gpu"]
    assert board.pools["gpu"].binding in {reason.binding.value for reason in decision.plan.reasons}
    assert board.forecast_per_s == decision.plan.forecast_per_s
    assert math.isfinite(board.budget_spent)
