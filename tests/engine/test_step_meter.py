"""What an engine's steps cost, found again in steps that were made from known costs."""

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config.speed import CALIBRATED_STEPS, CPU_SPEED, CUDA_SPEED, GUESS_STEPS
from serving.engine.step_meter import IDLE_GAP_S, StepMeter, tokens_in_blocks
from serving.protocol.frames import StepSpeed

TRUE: StepSpeed = (0.02, 2e-4, 1.5e-7, 6e-5)

Step = tuple[int, float, int]
"""Sequences, KV tokens, prompt tokens."""


def seconds(speed: StepSpeed, step: Step) -> float:
    return speed[0] + speed[1] * step[0] + speed[2] * step[1] + speed[3] * step[2]


def mixed(rng: random.Random) -> Step:
    """A step of an engine that serves chats: some sequences, their contexts, now and then a prompt."""
    num_sequences = rng.randint(1, 64)
    return num_sequences, num_sequences * rng.uniform(200, 4000), rng.choice([0, 0, 0, 512, rng.randint(1, 1900)])


def some_steps(number: int, make: Callable[[random.Random], Step] = mixed) -> Iterator[Step]:
    rng = random.Random(1)
    return (make(rng) for _ in range(number))


class Engine:
    """Steps, one after the other, as a meter sees them."""

    def __init__(self, seed: StepSpeed = CUDA_SPEED, seed_steps: float = GUESS_STEPS) -> None:
        self.meter = StepMeter(seed, seed_steps)
        self.now_s = 100.0
        self.num_steps = 0
        self.meter.on_request(self.now_s)

    def step(self, step: Step, took_s: float) -> None:
        self.now_s += took_s
        self.meter.on_step(self.now_s, *step)
        self.num_steps += 1
        if self.num_steps % 100 == 0:
            assert min(self.meter.speed) >= 0.0  # a replica asks for it several times a second

    def run(self, steps: Iterator[Step], true: StepSpeed = TRUE) -> None:
        for step in steps:
            self.step(step, seconds(true, step))


@pytest.mark.parametrize("seed", [CUDA_SPEED, CPU_SPEED, (0.0, 0.0, 0.0, 1e-6)])
def test_the_costs_are_found_whatever_the_guess_was(seed: StepSpeed) -> None:
    engine = Engine(seed)
    engine.run(some_steps(3000))
    assert engine.meter.speed == pytest.approx(TRUE, rel=0.05)


def test_a_few_seconds_of_serving_foretell_a_step_well() -> None:
    engine = Engine()
    engine.run(some_steps(200))
    for step in some_steps(50):
        assert seconds(engine.meter.speed, step) == pytest.approx(seconds(TRUE, step), rel=0.05)


def test_steps_in_which_the_machine_stood_still_hardly_count() -> None:
    engine = Engine()
    for number, step in enumerate(some_steps(3000)):
        engine.step(step, 2.0 if number % 50 == 0 else seconds(TRUE, step))
    assert engine.meter.speed == pytest.approx(TRUE, rel=0.1)


def test_steps_whose_end_was_seen_late_and_the_next_ones_too_soon_hardly_count() -> None:
    """A busy event loop reads the ends of two steps at once."""
    engine = Engine()
    for number, step in enumerate(some_steps(3000)):
        took_s = seconds(TRUE, step)
        lag_s = 0.95 * took_s if number % 50 == 0 else -0.95 * took_s if number % 50 == 1 else 0.0
        engine.step(step, took_s + lag_s)
    for step in some_steps(50):
        assert seconds(engine.meter.speed, step) == pytest.approx(seconds(TRUE, step), rel=0.1)


def test_a_machine_that_has_become_slower_is_noticed() -> None:
    engine = Engine()
    engine.run(some_steps(4000))
    slower = tuple(2.0 * cost for cost in TRUE)
    engine.run(some_steps(20_000), slower)  # type: ignore[arg-type]
    assert engine.meter.speed == pytest.approx(slower, rel=0.15)


def test_what_was_never_seen_stays_at_the_guess_for_ever() -> None:
    """An engine that makes embeddings has no sequences and no KV cache; days of it must not turn a guess into noise."""
    engine = Engine(CPU_SPEED)
    engine.run(some_steps(60_000, lambda rng: (0, 0.0, rng.randint(1, 500))))
    c0_s, c1_s, ckv_s, cp_s = engine.meter.speed
    assert (c1_s, ckv_s) == pytest.approx(CPU_SPEED[1:3])
    assert (c0_s, cp_s) == pytest.approx((TRUE[0], TRUE[3]), rel=0.05)


def quiet(rng: random.Random) -> Step:
    """A step of an engine that has little to do."""
    num_sequences = rng.randint(1, 3)
    return num_sequences, num_sequences * rng.uniform(50, 400), rng.choice([0] * 30 + [rng.randint(20, 800)])


def test_a_calibrated_engine_knows_of_full_batches_while_it_serves_few() -> None:
    """Measured steps scatter by some tenths: a hundred of one or two sequences say nothing of sixty."""
    rng, full = random.Random(2), (60, 60 * 300.0, 0)
    errors = {}
    for name, seed, seed_steps in (("guess", CPU_SPEED, GUESS_STEPS), ("calibrated", TRUE, CALIBRATED_STEPS)):
        engine = Engine(seed, seed_steps)
        errors[name] = []
        for number, step in enumerate(some_steps(1000, quiet)):
            engine.step(step, seconds(TRUE, step) * rng.lognormvariate(0.0, 0.2))
            if number % 100 == 99:
                errors[name].append(abs(seconds(engine.meter.speed, full) / seconds(TRUE, full) - 1.0))
    assert max(errors["calibrated"]) < 0.15 < max(errors["guess"])


def test_a_calibration_of_another_machine_is_forgotten() -> None:
    engine = Engine((2 * TRUE[0], 2 * TRUE[1], 2 * TRUE[2], 2 * TRUE[3]), CALIBRATED_STEPS)
    engine.run(some_steps(5000))
    assert engine.meter.speed == pytest.approx(TRUE, rel=0.1)


def test_before_any_step_the_guess_stands() -> None:
    assert StepMeter(CPU_SPEED, GUESS_STEPS).speed == CPU_SPEED


def test_steps_are_counted_with_what_was_in_them() -> None:
    meter = StepMeter(CPU_SPEED, GUESS_STEPS)
    meter.on_request(10.0)
    meter.on_step(10.5, 4, 1000.0, 300)
    meter.on_step(11.0, 5, 1100.0, 0)
    assert meter.work == (2.0, 300.0, 9.0, 2100.0, 1.0)


def test_the_time_between_requests_is_no_step() -> None:
    engine = Engine()
    for step in some_steps(3000):
        engine.step(step, seconds(TRUE, step))
        engine.meter.on_idle()
        engine.now_s += 5.0
        engine.meter.on_request(engine.now_s)
    assert engine.meter.speed == pytest.approx(TRUE, rel=0.05)
    assert engine.meter.work[4] == pytest.approx(sum(seconds(TRUE, step) for step in some_steps(3000)))


def test_a_request_that_joins_others_begins_no_step() -> None:
    meter = StepMeter(CPU_SPEED, GUESS_STEPS)
    meter.on_request(10.0)
    meter.on_request(10.9)
    meter.on_step(11.0, 1, 10.0, 5)
    assert meter.work[4] == pytest.approx(1.0)


def test_a_step_whose_beginning_nobody_saw_does_not_count() -> None:
    meter = StepMeter(CPU_SPEED, GUESS_STEPS)
    meter.on_step(10.0, 1, 10.0, 5)
    meter.on_step(10.0 + 2 * IDLE_GAP_S, 1, 10.0, 5)
    assert meter.work == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert meter.speed == CPU_SPEED


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.floats(-1.0, 40.0), st.integers(0, 1000), st.floats(0.0, 1e7), st.integers(0, 100_000), st.booleans()
        ),
        max_size=60,
    ),
    seed=st.tuples(st.floats(0.0, 60.0), st.floats(0.0, 60.0), st.floats(0.0, 60.0), st.floats(1e-9, 60.0)),
)
def test_no_steps_give_a_cost_below_zero_or_none_at_all(
    steps: list[tuple[float, int, float, int, bool]], seed: StepSpeed
) -> None:
    meter, now_s = StepMeter(seed, GUESS_STEPS), 0.0
    for took_s, num_sequences, kv_tokens, prompt_tokens, is_idle in steps:
        now_s += took_s
        meter.on_step(now_s, num_sequences, kv_tokens, prompt_tokens)
        if is_idle:
            meter.on_idle()
        assert all(0.0 <= cost < float("inf") for cost in meter.speed)
        assert all(0.0 <= figure < float("inf") for figure in meter.work)


@pytest.mark.parametrize("block_size", [1, 16, 128])
def test_sequences_have_fewer_tokens_than_their_blocks_have_room_for(block_size: int) -> None:
    """Over the life of an answer of 200 tokens to a prompt of 18."""
    lengths = range(18, 218)
    held_tokens = sum(-(-length // block_size) * block_size for length in lengths)
    assert tokens_in_blocks(held_tokens, len(lengths), block_size) == pytest.approx(sum(lengths), rel=0.06)


def test_a_running_sequence_has_a_token_at_least() -> None:
    assert tokens_in_blocks(128.0, 3, 128) == 3.0
