"""A schedule is the same for a seed, however many workers send it, and holds what the workload asks for."""

from array import array
from pathlib import Path

import numpy as np
import orjson
import pytest

from benchmarks.load.arrivals import steady
from benchmarks.load.lengths import MOST_TOKENS, Lengths, load_trace, parse_lengths
from benchmarks.load.mistake import BenchError
from benchmarks.load.prompts import Speech
from benchmarks.load.schedule import Kind, Planned, Workload, closed_schedule, open_schedule, trace_schedule
from benchmarks.simulator.trace import Trace

MIXED = Workload(
    prompt=parse_lengths("normal:200,40"), output=parse_lengths("lognormal:60,0.5"), turns=3, prefix_tokens=50,
    num_prefixes=4, tools_share=0.2, json_share=0.3, cancel_share=0.1, slow_share=0.05,
)  # fmt: skip


def flat(workload: Workload, workers: int = 1) -> list[Planned]:
    schedule = open_schedule(workload, steady(50.0, 20.0), "poisson", seed=3)
    return [
        row for worker in range(workers) for session in schedule.part(worker, workers).sessions() for row in session
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_any_number_of_workers_sends_each_request_once_and_the_same(workers: int) -> None:
    alone, split = flat(MIXED), flat(MIXED, workers)
    assert sorted(map(repr, split)) == sorted(map(repr, alone))
    speech = Speech("m", 3)
    assert {speech.question(row) for row in split} == {speech.question(row) for row in alone}


def test_no_two_prompts_begin_alike() -> None:
    speech = Speech("m", 3)
    first_words = [speech.question(row).split()[0] for row in flat(MIXED)]
    assert len(set(first_words)) == len(first_words) > 2000


def test_another_lap_has_the_same_shapes_and_other_words() -> None:
    schedule = closed_schedule(MIXED, 10, seed=1)
    (first, *_), (again, *_) = next(schedule.sessions()), next(schedule.sessions(lap=1))
    assert (first.prompt_tokens, first.output_tokens) == (again.prompt_tokens, again.output_tokens)
    assert Speech("m", 1).question(first).split()[0] != Speech("m", 1).question(again).split()[0]


def test_shares_are_of_all_requests_and_lengths_are_those_asked_for() -> None:
    rows = flat(MIXED)
    assert np.mean([row.kind is Kind.TOOLS for row in rows]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([row.kind is Kind.JSON for row in rows]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([row.cancel_after > 0 for row in rows]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([row.is_slow for row in rows]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([row.prompt_tokens for row in rows]) == pytest.approx(200, rel=0.03)
    assert np.median([row.output_tokens for row in rows]) == pytest.approx(60, rel=0.06)
    assert {row.prefix for row in rows} == {0, 1, 2, 3}
    assert all(row.cancel_after < max(row.output_tokens, 2) for row in rows)


def test_only_the_first_turn_has_a_time_of_its_own() -> None:
    rows = flat(MIXED)
    assert all((row.turn == 0) == (row.at_s == row.at_s) for row in rows)
    assert [row.turn for row in rows[:6]] == [0, 1, 2, 0, 1, 2]


def test_another_rate_leaves_the_shapes_as_they_were() -> None:
    slow, fast = (open_schedule(MIXED, steady(rate, 20.0), "constant", seed=3) for rate in (10.0, 20.0))
    assert slow.kind[:200].shape == fast.kind[:200].shape
    assert not slow.is_slow.all()
    closed = closed_schedule(MIXED, len(slow) // 3, seed=3)
    assert slow.prompt_tokens.tolist() == closed.prompt_tokens.tolist()


def test_a_trace_is_replayed_with_its_arrivals_and_its_lengths() -> None:
    trace = Trace("t", array("d", [0.0, 1.5, 2.0]), array("l", [10, 20, 30]), array("l", [1, 2, 3]))
    schedule = trace_schedule(Workload(), trace, seed=1)
    rows = [row for session in schedule.sessions() for row in session]
    assert [(row.at_s, row.prompt_tokens, row.output_tokens) for row in rows] == [
        (0.0, 10, 1),
        (1.5, 20, 2),
        (2.0, 30, 3),
    ]
    with pytest.raises(BenchError, match="1 turn"):
        trace_schedule(Workload(turns=2), trace, seed=1)


def test_a_client_of_a_trace_hangs_up_within_the_answer_that_the_trace_asks_for() -> None:
    trace = Trace("t", array("d", range(200)), array("l", [10] * 200), array("l", [5] * 200))
    schedule = trace_schedule(Workload(cancel_share=1.0), trace, seed=1)
    assert set(schedule.cancel_after.tolist()) == {1, 2, 3, 4}


def test_lengths_drawn_from_a_trace_stay_in_pairs() -> None:
    trace = Trace("t", array("d", [0.0, 1.0]), array("l", [10, 500]), array("l", [1, 50]))
    schedule = closed_schedule(Workload(lengths_from=trace), 200, seed=1)
    assert set(zip(schedule.prompt_tokens.tolist(), schedule.output_tokens.tolist(), strict=True)) == {
        (10, 1),
        (500, 50),
    }


def test_a_body_asks_for_what_was_planned() -> None:
    (planned, *_) = flat(Workload(output=Lengths("fixed", 9)))
    speech = Speech("m", 3, prefix_tokens=20, extra={"temperature": 0.7})
    body = orjson.loads(speech.body(planned, ["one", "two", "three"]))
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert (body["max_tokens"], body["min_tokens"], body["temperature"]) == (9, 9, 0.7)
    assert len(body["messages"][0]["content"].split()) == 20
    plain = orjson.loads(Speech("m", 3, endpoint="completions", has_min_tokens=False).body(planned, ["one"]))
    assert plain["prompt"] == "one"
    assert "min_tokens" not in plain


def test_a_prompt_is_as_long_as_its_tokens_say_for_this_model() -> None:
    (planned, *_) = flat(Workload(prompt=Lengths("fixed", 400)))
    assert len(Speech("m", 1).question(planned).split()) == 400 - 3 + 1
    assert len(Speech("m", 1, tokens_per_word=4.0, overhead_tokens=40).question(planned).split()) == 90 - 3 + 1
    long = planned.__class__(
        **{**{name: getattr(planned, name) for name in planned.__slots__}, "prompt_tokens": 200_000}
    )
    assert len(Speech("m", 1).question(long).split()) == 200_000 - 3 + 1


@pytest.mark.parametrize("text", ["x", "normal:5", "lognormal:a,b", "uniform:1,2", "0", "normal:9,-1", "normal:nan,1",
                                  "lognormal:300,inf", "normal:inf,1", "9" * 30])  # fmt: skip
def test_what_is_no_length_is_named(text: str) -> None:
    with pytest.raises(BenchError, match=text):
        parse_lengths(text)


def test_a_length_is_never_longer_than_any_model_takes() -> None:
    drawn = parse_lengths("lognormal:300,90").draw(np.random.default_rng(1), 100)
    assert (drawn.min(), drawn.max()) == (1, MOST_TOKENS)


def test_a_workload_that_cannot_be_is_refused() -> None:
    for wrong in ({"tools_share": 0.7, "json_share": 0.7}, {"cancel_share": 1.5}, {"turns": 0}):
        with pytest.raises(BenchError):
            Workload(**wrong)  # type: ignore[arg-type]
    with pytest.raises(BenchError, match="empty"):
        open_schedule(Workload(), steady(0.001, 1.0), "poisson", 1)


def test_a_file_that_is_no_trace_says_which_formats_there_are(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="Mooncake"):
        load_trace(tmp_path / "none.csv")
