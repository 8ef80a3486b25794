"""Whole runs: nothing is lost, money adds up, faults are simulated, every policy stays in its bounds."""

from collections.abc import Callable, Sequence

import pytest

from benchmarks.simulator import simulation as simulation_module
from benchmarks.simulator.contenders import CONTENDERS, fleet_for
from benchmarks.simulator.fleet import View
from benchmarks.simulator.ours import Ours
from benchmarks.simulator.peers.ray_serve import RayServe
from benchmarks.simulator.peers.static import Static
from benchmarks.simulator.replica import SimRequest
from benchmarks.simulator.scenario import Outage, Scenario
from benchmarks.simulator.simulation import simulate
from benchmarks.simulator.trace import Trace

Poisson = Callable[..., Trace]


def test_the_same_arguments_give_the_same_outcome(scenario: Scenario, poisson: Poisson) -> None:
    trace = poisson(6.0, 900.0)
    one, two = (simulate(scenario, trace, Ours(scenario), 3) for _ in range(2))
    assert (one.usd, one.num_met, list(one.ttft_s)) == (two.usd, two.num_met, list(two.ttft_s))
    other = simulate(scenario, poisson(12.0, 900.0), Ours(scenario), 4)
    assert other.num_met != simulate(scenario, poisson(12.0, 900.0), Ours(scenario), 3).num_met  # another cold start


def test_a_fleet_that_stands_still_costs_its_price(scenario: Scenario, poisson: Poisson) -> None:
    trace = poisson(2.0, 600.0)
    outcome = simulate(scenario, trace, Static(scenario, 1))
    assert outcome.usd == pytest.approx(3.67 * trace.span_s / 3600.0)
    assert outcome.num_met == outcome.num_requests == len(trace)
    assert sum(outcome.num_starts) == sum(outcome.num_stops) == 0
    assert outcome.usd_per_million_tokens < outcome.usd_per_million_output_tokens


def test_every_request_is_met_missed_or_refused_and_served_all_the_same(scenario: Scenario, poisson: Poisson) -> None:
    trace = poisson(12.0, 300.0)
    outcome = simulate(scenario, trace, Static(scenario, 1))
    assert outcome.num_met + outcome.num_ttft_missed + outcome.num_tpot_missed == len(trace)
    assert outcome.num_ttft_missed > 0
    assert sum(outcome.served) == len(trace)
    shedding = scenario.model_copy(update={"is_shedding": True})
    shed = simulate(shedding, trace, Static(shedding, 1))
    assert shed.num_refused > 0
    assert sum(shed.served) == len(trace) - shed.num_refused
    assert shed.slo_of_admitted > 0.99 > shed.slo


def test_our_router_meets_more_deadlines_than_two_random_choices(scenario: Scenario, poisson: Poisson) -> None:
    trace = poisson(12.0, 600.0)
    ours = simulate(scenario, trace, Static(scenario, 1))
    plain = simulate(scenario, trace, Static(scenario, 1), has_plain_router=True)
    assert ours.slo > plain.slo + 0.1


def test_a_fallback_pool_serves_while_the_primary_one_is_away(scenario: Scenario, poisson: Poisson) -> None:
    trace = poisson(0.05, 7200.0, prompt_tokens=200, output_tokens=50)

    class CpuAlone:
        def targets(self, view: View) -> Sequence[int]:
            return [0, 1]

    outcome = simulate(scenario, trace, CpuAlone())
    assert outcome.served[1] > 0.9 * len(trace)
    assert outcome.slo > 0.9


def test_an_outage_kills_what_is_over_it_and_nothing_is_lost(scenario: Scenario, poisson: Poisson) -> None:
    outage = Outage(pool="gpu", start_s=300.0, end_s=900.0, max_replicas=0)
    broken = scenario.model_copy(update={"outages": (outage,)})
    trace = poisson(2.0, 2400.0)
    outcome = simulate(broken, trace, Ours(broken), 1, keep_timeline=True)
    assert sum(outcome.served) == len(trace)
    during = [sample for sample in outcome.timeline if 310.0 < sample.at_s < 890.0]
    assert all(sample.num_ready[0] == 0 for sample in during)
    assert any(sample.num_ready[1] > 0 for sample in during)
    assert outcome.timeline[-1].num_ready[0] >= 1


def test_what_an_outage_has_cut_off_waits_in_order_of_its_deadline(
    scenario: Scenario, poisson: Poisson, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(pool="gpu", start_s=400.0, end_s=460.0, max_replicas=1)
    broken = scenario.model_copy(update={"outages": (outage,)})
    trace = poisson(24.0, 500.0)
    simulation, most = simulation_module._Simulation, 0
    wait_again = simulation._wait_again

    def checked(self: simulation_module._Simulation, lost: Sequence[SimRequest]) -> None:
        nonlocal most
        most = max(most, len(lost))
        wait_again(self, lost)
        for line in (self._queue, self._late):
            deadlines = [request.deadline_s for request in line]
            assert deadlines == sorted(deadlines)
        assert not any(request.is_late for request in self._queue)

    monkeypatch.setattr(simulation, "_wait_again", checked)
    outcome = simulate(broken, trace, Static(broken, 2))
    assert most > 10
    assert outcome.num_met + outcome.num_ttft_missed + outcome.num_tpot_missed == len(trace)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_runs_within_its_bounds(name: str, scenario: Scenario, poisson: Poisson) -> None:
    trace = poisson(8.0, 900.0)
    contender = CONTENDERS[name]
    for setting in contender.settings[:2]:
        fleet = fleet_for(name, setting, scenario)
        outcome = simulate(
            fleet,
            trace,
            contender.make(fleet, **setting),
            keep_timeline=True,
            has_plain_router=contender.has_plain_router,
        )
        assert sum(outcome.served) == len(trace)
        for sample in outcome.timeline:
            for target, pool in zip(sample.targets, fleet.pools, strict=True):
                assert 0 <= target <= pool.replicas.max


def test_ray_scales_by_its_own_rule_and_delays(scenario: Scenario, poisson: Poisson) -> None:
    """Ray's code decides: up no sooner than its delay of 30 s, down no sooner than 600 s."""
    trace = poisson(6.0, 1500.0)
    outcome = simulate(scenario, trace, RayServe(scenario), keep_timeline=True)
    targets = [(sample.at_s, sample.targets[0]) for sample in outcome.timeline]
    first_up_s = next(at_s for at_s, target in targets if target > 1)
    assert 30.0 <= first_up_s <= 60.0
    assert max(target for _, target in targets) > 4
