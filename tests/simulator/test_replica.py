"""A simulated replica against the step model, done by hand."""

import pytest

from benchmarks.simulator.replica import SimReplica, SimRequest
from serving.router.prediction import StepModel

MODEL = StepModel(0.01, 1e-3, 1e-6, 1e-4, 100, 2, 1000)


class Bench:
    """One replica, and what it has finished."""

    def __init__(self, model: StepModel = MODEL) -> None:
        self.done: list[SimRequest] = []
        self.replica = SimReplica("r", 0, model, False, 0.0, self.done.append)

    def send(self, now_s: float, prompt_tokens: int, output_tokens: int) -> SimRequest:
        request = SimRequest(len(self.done), now_s, prompt_tokens, output_tokens, 5.0)
        self.replica.submit(request, now_s)
        return request

    def run(self, until_s: float = 1e9) -> None:
        while self.replica.event_s <= until_s and self.replica.event_s < float("inf"):
            self.replica.fire()


def test_a_prompt_is_done_in_chunks_and_each_token_takes_a_step() -> None:
    bench = Bench()
    request = bench.send(0.0, 150, 3)
    bench.run()
    prefill_s = (0.01 + 1e-4 * 100) + (0.01 + 1e-6 * 100 + 1e-4 * 50)
    assert request.first_s == pytest.approx(prefill_s)
    decode_s = sum(0.01 + 1e-3 + 1e-6 * kv for kv in (151, 152))
    assert request.finish_s == pytest.approx(prefill_s + decode_s)
    assert bench.replica.kv_tokens == 0
    assert bench.replica.kv_free_tokens == 1000
    assert bench.replica.is_idle


def test_an_answer_of_one_token_ends_with_the_prompt() -> None:
    bench = Bench()
    request = bench.send(0.0, 50, 1)
    bench.run()
    assert request.finish_s == request.first_s == pytest.approx(0.01 + 1e-4 * 50)


def test_a_prompt_that_comes_in_a_run_of_steps_begins_with_the_next_step() -> None:
    bench = Bench()
    first = bench.send(0.0, 100, 200)
    bench.run(first.first_s if first.first_s > 0 else 0.02)
    began_s = bench.replica.event_s
    bench.run(0.02)
    second = bench.send(0.05, 10, 1)
    steps, end_s = 0, first.first_s
    while end_s < 0.05:
        end_s += 0.01 + 1e-3 + 1e-6 * (101 + steps)
        steps += 1
    bench.run()
    assert began_s > 0.0
    assert second.first_s == pytest.approx(end_s + 0.01 + 1e-3 + 1e-6 * (101 + steps) + 1e-4 * 10)
    assert first.finish_s > second.finish_s


@pytest.mark.parametrize("ckv", [0.0, 1e-6])
def test_a_run_of_steps_ends_where_single_steps_would(ckv: float) -> None:
    bench = Bench(StepModel(0.01, 1e-3, ckv, 1e-4, 100, 2, 10_000))
    request = bench.send(0.0, 100, 500)
    bench.run(0.03)
    bench.send(1.0, 5, 1)
    bench.run()
    plain_s = sum(0.01 + 1e-3 + ckv * (101 + step) for step in range(499))
    assert request.finish_s == pytest.approx(0.01 + 1e-4 * 100 + plain_s + 5e-4 + 0.0, rel=1e-3)


def test_slots_and_kv_cache_bound_who_is_admitted() -> None:
    bench = Bench()
    requests = [bench.send(0.0, 50, 20) for _ in range(3)]
    assert bench.replica.num_free_slots == -1
    bench.run()
    assert requests[2].first_s > min(requests[0].finish_s, requests[1].finish_s)
    big = Bench()
    one, two = big.send(0.0, 600, 10), big.send(0.0, 600, 10)
    big.run()
    assert two.first_s > one.finish_s
    alone = Bench()
    too_big = alone.send(0.0, 5000, 2)  # more than the cache holds: served alone rather than never
    alone.run()
    assert too_big.finish_s > 0.0


def test_work_is_accounted_as_the_model_would() -> None:
    bench = Bench()
    for _ in range(5):
        bench.send(0.0, 130, 40)
    bench.run()
    replica = bench.replica
    modelled_s = (
        replica.num_steps * MODEL.c0_s
        + replica.decode_tokens * MODEL.c1_s_per_sequence
        + replica.kv_token_steps * MODEL.ckv_s_per_token
        + replica.prefill_tokens * MODEL.cp_s_per_token
    )
    assert replica.busy_s == pytest.approx(modelled_s)
    assert replica.prefill_tokens == 5 * 130
    assert replica.decode_tokens == 5 * 39


def test_what_a_dead_replica_had_can_be_done_again() -> None:
    bench = Bench()
    sent = [bench.send(0.0, 150, 40) for _ in range(3)]
    bench.run(0.05)
    assert set(bench.replica.take_all()) == set(sent)
    assert not bench.replica.is_ready
    assert all(request.remaining_tokens == 150 for request in sent)
