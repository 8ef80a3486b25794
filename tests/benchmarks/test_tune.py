"""`ballast tune`: the search finds the cheapest settings, gives up what is hopeless, and writes a config that says
so."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from benchmarks.load.mistake import BenchError
from benchmarks.runs.intervals import NUM_RESAMPLES
from benchmarks.runs.knee import Point, next_rate
from benchmarks.runs.slo import Slo
from benchmarks.runs.sweep import is_hopeless
from benchmarks.tune import findings
from benchmarks.tune.bench import Subject, reason
from benchmarks.tune.command import subject_of
from benchmarks.tune.patch import patched
from benchmarks.tune.price import price, rate_at
from benchmarks.tune.search import LAP, SHORT, Candidate, Nothing, Tuning, Visit, Wish
from benchmarks.tune.settings import REPLICAS, Settings, changed, identity, usd_per_hour, words
from benchmarks.tune.space import Knob, default_knobs, grid, parse_try, with_tried
from serving.change import plan_change
from serving.config import load_config, parse_config
from serving.machine import Machine
from serving.plan import plan, read_specs

ROOT = Path(__file__).parents[2]
CONFIG = load_config(ROOT / "ballast.yaml")
SUBJECT = subject_of(CONFIG.model_dump(mode="json"), None, None)
MACHINE = Machine(num_cpus=2.0, total_memory_bytes=2**35, available_memory_bytes=2**35, free_disk_bytes=2**40)
OBJECTIVE = 0.99
TOKENS = 192.0
SEQS = Knob("engine.max_num_seqs", (16, 32, 64, 128, 256, 512), 64)
EAGER = Knob("engine.enforce_eager", (True, False), True)
CPUS = Knob("cpus_per_replica", (1, 2), 1)


def point(rate_per_s: float, capacity_per_s: float, spread: float = 0.002) -> Point:
    share = 1.0 / (1.0 + math.exp(40.0 * (math.log(rate_per_s) - math.log(capacity_per_s))))
    rng = np.random.default_rng(round(1000 * rate_per_s))
    return Point(rate_per_s, share, np.clip(share + spread * rng.normal(size=NUM_RESAMPLES), 0.0, 1.0), rate_per_s)


def capacity_of(settings: Settings) -> float:
    """Requests per second: best at 256 sequences, half again with torch.compile, a second core adds a fifth."""
    seqs = float(str(settings.get("engine.max_num_seqs", 64)))
    found = 40.0 * (1.0 - 0.1 * abs(math.log2(seqs / 256)))
    found *= 1.5 if settings.get("engine.enforce_eager") is False else 1.0
    return found * (1.2 if settings.get("cpus_per_replica") == 2 else 1.0)


def is_compiled(settings: Settings) -> bool:
    return settings.get("engine.enforce_eager") is False


class FakeBench:
    """Servers whose capacity is known, searched as `Search` does it."""

    def __init__(self, fails: Callable[[Settings], bool] = lambda _: False, wall_s: float = 60.0) -> None:
        self.wishes: list[Wish] = []
        self.fails, self.wall_s = fails, wall_s

    def measure(self, wish: Wish) -> Visit:
        self.wishes.append(wish)
        if self.fails(wish.settings):
            return Visit(wish.settings, wish.stage, wish.number, error="no compiler", wall_s=self.wall_s)
        points: list[Point] = list(wish.known)
        num_known = len(points)
        while (rate := next_rate(points, OBJECTIVE, wish.start_per_s or 2.0, 0.05, 1.3)) is not None:
            points.append(point(rate, capacity_of(wish.settings)))
            if is_hopeless(points, wish.least_per_s, OBJECTIVE):
                break
        if wish.stage == LAP:
            points += points[-2:]
        return Visit(
            wish.settings, wish.stage, wish.number, tuple(points[num_known:]), TOKENS, None, wish.least_per_s,
            is_hopeless(points, wish.least_per_s, OBJECTIVE), self.wall_s,
        )  # fmt: skip


def tuning(bench: FakeBench, budget_s: float = 3600.0) -> Tuning:
    return Tuning(
        SUBJECT.pool, OBJECTIVE, bench.measure, lambda settings: SUBJECT.problem_of(settings, MACHINE), budget_s
    )


def test_the_descent_finds_the_cheapest_settings_and_proves_it_in_laps() -> None:
    bench = FakeBench()
    run = tuning(bench)
    run.descend([CPUS, EAGER, SEQS])
    run.run_laps(3)
    winner = run.winner()
    assert dict(winner.settings) == {"engine.enforce_eager": False, "engine.max_num_seqs": 256}
    found = findings.ratio_of(run, winner)
    assert found is not None
    assert found["value"] == pytest.approx(capacity_of({}) / capacity_of(winner.settings), rel=0.05)
    assert findings.is_cheaper(run, winner)


def test_a_candidate_that_misses_where_it_would_cost_the_same_is_dropped_after_one_round() -> None:
    run = tuning(FakeBench())
    run.descend([CPUS])
    dearer = run.candidates[identity({"cpus_per_replica": 2})]
    assert dearer.why is not None
    assert "where it would cost what the best does" in dearer.why
    assert len(dearer.points(SHORT)) == 1
    assert run.winner() is run.default


def test_a_server_that_does_not_start_is_recorded_and_dropped() -> None:
    bench = FakeBench(fails=is_compiled)
    run = tuning(bench)
    run.descend([EAGER, SEQS])
    assert run.candidates[identity({"engine.enforce_eager": False})].why == "no compiler"
    assert dict(run.winner().settings) == {"engine.max_num_seqs": 256}


def test_a_config_that_does_not_start_as_it_is_ends_the_search() -> None:
    with pytest.raises(Nothing, match="no compiler"):
        tuning(FakeBench(fails=lambda settings: not settings)).descend([SEQS])


def test_what_does_not_fit_the_machine_is_never_started() -> None:
    bench = FakeBench()
    run = tuning(bench)
    run.measure_grid([{}, {"cpus_per_replica": 2, REPLICAS: 2}, {"engine.max_num_seqs": 0}])
    assert [wish.settings for wish in bench.wishes] == [{}]
    reasons = [each.why or "" for each in run.candidates.values()][1:]
    assert "4 CPU cores" in reasons[0]
    assert "engine.max_num_seqs" in reasons[1]


def test_the_budget_ends_the_exploring_at_its_half_and_leaves_one_lap() -> None:
    bench = FakeBench(wall_s=60.0)
    run = tuning(bench, budget_s=240.0)
    run.descend([EAGER, SEQS])
    assert len(bench.wishes) == 2
    run.run_laps(5)
    assert [wish.stage for wish in bench.wishes] == [SHORT, SHORT, LAP, LAP]
    assert {identity(wish.settings) for wish in bench.wishes[2:]} == {"{}", identity({"engine.enforce_eager": False})}


def test_laps_halve_and_always_keep_the_config_as_it_is() -> None:
    bench = FakeBench()
    run = tuning(bench)
    points = [{}, *({"engine.max_num_seqs": seqs} for seqs in (128, 192, 224, 256, 288))]
    run.measure_grid(points)
    run.run_laps(2)
    laps = [[wish.settings for wish in bench.wishes if wish.stage == LAP and wish.number == lap] for lap in (0, 1)]
    assert [len(lap) for lap in laps][1] <= len(laps[0]) <= 4
    assert all({} in lap for lap in laps)
    assert len(laps[1]) == 2
    assert all(wish.known for wish in bench.wishes if wish.stage == LAP and wish.number == 1)


def test_the_price_follows_the_cores() -> None:
    assert usd_per_hour(SUBJECT.pool, {}) == pytest.approx(0.10)
    assert usd_per_hour(SUBJECT.pool, {"cpus_per_replica": 2}) == pytest.approx(0.20)
    assert usd_per_hour(SUBJECT.pool, {"cpus_per_replica": 2, REPLICAS: 3}) == pytest.approx(0.60)


@given(st.floats(1.0, 200.0), st.floats(0.01, 10.0))
def test_cost_and_rate_are_each_others_inverse(rate_per_s: float, usd: float) -> None:
    points = [point(rate, rate_per_s) for rate in (rate_per_s * 0.7, rate_per_s * 0.9, rate_per_s * 1.1)]
    found = price(points, OBJECTIVE, usd, TOKENS, 0)
    assert rate_at(found.value, usd, TOKENS) == pytest.approx(found.rate_per_s)
    assert found.ci95[0] <= found.value <= found.ci95[1]


def test_the_interval_is_no_narrower_than_the_search_was_precise() -> None:
    cliff = [Point(rate, share, np.full(NUM_RESAMPLES, share), rate) for rate, share in ((50.0, 1.0), (55.0, 0.2))]
    found = price(cliff, OBJECTIVE, 0.1, TOKENS, 0)
    assert found.rate_ci95[1] / found.rate_ci95[0] == pytest.approx(1.1, rel=0.01)


def test_an_edge_that_was_not_reached_never_counts_for_the_winner() -> None:
    held, missed = [point(10.0, 1000.0, 0.0)], [point(10.0, 1.0, 0.0)]
    endless, never = (price(points, OBJECTIVE, 1.0, TOKENS, 0) for points in (held, missed))
    assert never.value == math.inf
    assert endless.over(endless)[1:] == (math.inf, math.inf)
    assert never.over(never)[1:] == (math.inf, math.inf)


def default_space(**engine: JsonValue) -> dict[str, Knob]:
    pool = changed(SUBJECT.pool, {f"engine.{key}": value for key, value in engine.items()})
    [planned] = plan(CONFIG, MACHINE, read_specs(CONFIG)).pools
    return {knob.key: knob for knob in default_knobs(pool, 2.0, "bfloat16", planned, 192)}


def test_the_space_has_the_configs_own_values_in_their_place() -> None:
    assert default_space(max_num_seqs=48)["engine.max_num_seqs"].values == (8, 16, 32, 48, 64, 128, 256, 512, 1024)
    assert default_space()["cpus_per_replica"].values == (1, 2)
    assert default_space()["engine.dtype"].values == ("auto", "float32")
    assert default_space(dtype="bfloat16")["engine.dtype"].values == ("bfloat16", "float32")
    assert default_space()["engine.max_num_batched_tokens"].values == (256, 512, 1024, None, 4096, 8192)
    assert default_space(max_num_batched_tokens=2048)["engine.max_num_batched_tokens"].values[3:5] == (None, 2048)


def test_the_cache_is_only_tried_where_it_may_bind() -> None:
    assert "engine.kv_cache_gib" not in default_space()
    assert "engine.kv_cache_gib" in default_space(max_num_seqs=1024)


def test_values_that_are_named_come_first_and_replace_the_usual_ones() -> None:
    tried = [
        parse_try(SUBJECT.pool, "engine.max_num_seqs=32,96"),
        parse_try(SUBJECT.pool, "engine.extra.stream_interval=4"),
    ]
    found = with_tried([SEQS, CPUS, EAGER], tried, ["cpus_per_replica"])
    assert [knob.key for knob in found] == [
        "engine.max_num_seqs",
        "engine.extra.stream_interval",
        "engine.enforce_eager",
    ]
    assert found[0].values == (32, 64, 96)
    assert found[1].values == (4, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine.max_num_seqs", "write KEY=VALUE"),
        ("engine.max_num_seq=3", "engine.max_num_seqs"),
        ("name=other", "no setting"),
        ("engine.gpu_memory_utilization=0.5", "no setting of a cpu pool"),
        ("engine.dtype=[a", "no YAML"),
    ],
)
def test_a_value_that_cannot_be_tried_is_refused(text: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        parse_try(SUBJECT.pool, text)


def test_a_grid_has_every_combination_and_the_config_as_it_is_first() -> None:
    points = grid([EAGER, CPUS])
    assert points[0] == {}
    assert {identity(each) for each in points} == {
        identity(each)
        for each in ({}, {"cpus_per_replica": 2}, {"engine.enforce_eager": False},
                     {"cpus_per_replica": 2, "engine.enforce_eager": False})
    }  # fmt: skip
    with pytest.raises(BenchError, match="over 64"):
        grid([SEQS, EAGER, CPUS, Knob("engine.dtype", ("auto", "float32", "bfloat16"), "auto")])


CHANGES: dict[tuple[str, ...], Any] = {
    ("engine", "max_num_seqs"): 256,
    ("engine", "max_num_batched_tokens"): 4096,
    ("engine", "extra", "stream_interval"): 4,
    ("cpus_per_replica",): 2,
    ("usd_per_hour",): 0.2,
    ("replicas", "max"): 2,
    ("speed",): {"step_s": 0.005, "sequence_s": 1.8e-05, "kv_token_s": 4.7e-07, "prompt_token_s": 6e-05},
}


def test_the_tuned_file_keeps_every_comment_and_changes_nothing_else() -> None:
    text = (ROOT / "ballast.yaml").read_text()
    made = patched(text, "ballast-demo", "cpu", CHANGES, ["why: measured"])
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert all(comment in made for comment in comments)
    assert "      # why: measured\n      - name: cpu\n" in made
    config = parse_config(made, ROOT)
    [pool] = config.models[0].pools
    assert (pool.engine.max_num_seqs, pool.engine.max_num_batched_tokens, pool.usd_per_hour) == (256, 4096, 0.2)
    assert dict(pool.engine.extra) == {"stream_interval": 4}
    change = plan_change(CONFIG, config)
    assert not change.needs_restart
    assert {key.path.rpartition("cpu]")[2].rpartition("cpu.")[2] for key in change.keys}


FORMS = {
    "flow": "models: [{name: m, source: gpt2, pools: [{name: p, device: cpu, cpus_per_replica: 1, usd_per_hour: 1}]}]",
    "no engine": "models:\n- name: m\n  source: gpt2\n  pools:\n  - name: p\n    device: cpu\n    cpus_per_replica: 1\n"
    "    usd_per_hour: 1  # dear\n",
    "one key": "models:\n  - name: m\n    source: gpt2\n    pools:\n      - engine:\n          extra:\n"
    "            a: 1\n        usd_per_hour: 1\n        device: cpu\n        cpus_per_replica: 1\n        name: p",
    "quoted": 'models:\n  - "name": "m"\n    source: gpt2\n    pools:\n      - {"name": "p", device: cpu, '
    "cpus_per_replica: 1, usd_per_hour: 1, engine: {}, replicas: {}}\n",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_file_is_edited_however_it_is_written(text: str, tmp_path: Path) -> None:
    [pool] = parse_config(patched(text, "m", "p", CHANGES, ["why"]), tmp_path).models[0].pools
    assert pool.engine.max_num_seqs == 256
    assert pool.engine.extra["stream_interval"] == 4
    assert pool.replicas.max == 2
    assert pool.speed is not None


def test_which_pool_is_meant_must_be_clear() -> None:
    config = CONFIG.model_dump(mode="json")
    pool = config["models"][0]["pools"][0]
    config["models"][0]["pools"] = [pool, {**pool, "name": "other"}]
    with pytest.raises(BenchError, match="say which with --pool"):
        subject_of(config, None, None)
    with pytest.raises(BenchError, match="there is no pool third"):
        subject_of(config, None, "third")
    assert subject_of(config, None, "other").pool["name"] == "other"
    config["models"][0]["pools"] = [{**pool, "usd_per_hour": 0.0}]
    with pytest.raises(BenchError, match="give it a price"):
        subject_of(config, None, None)


def test_a_candidates_server_is_this_pool_alone_on_loopback_with_the_configs_limits() -> None:
    config = {**SUBJECT.config, "server": {**SUBJECT.config["server"], "host": "0.0.0.0"}}
    subject = Subject(config, SUBJECT.model, SUBJECT.pool)
    found = subject.parsed({"engine.max_num_seqs": 128, REPLICAS: 2})
    assert found.server.host == "127.0.0.1"
    assert found.limits == CONFIG.limits
    [pool] = found.models[0].pools
    assert (pool.engine.max_num_seqs, pool.replicas.min, pool.replicas.max) == (128, 2, 2)


def test_a_failed_start_is_told_in_one_line_without_folders() -> None:
    text = "Starting\nballast: demo/cpu could not be started: no file /a/b/model.bin\nThe whole story is in /x/y.log.\n"
    assert reason(text) == "demo/cpu could not be started: no file model.bin"
    assert reason("") == "it said nothing"


def test_findings_are_json_that_says_why_each_was_dropped(tmp_path: Path) -> None:
    run = tuning(FakeBench(fails=is_compiled))
    run.descend([EAGER, CPUS, SEQS])
    run.run_laps(2)
    found = json.loads(json.dumps(findings.as_json(run, tmp_path), allow_nan=False))
    assert found["winner"] == {"engine.max_num_seqs": 256}
    assert found["is_cheaper"] is True
    why = {words(each["settings"]): each["dropped"] for each in found["candidates"]}
    assert why["enforce_eager false"] == "no compiler"
    assert why["max_num_seqs 256"] is None
    assert "costs" in findings.verdict(found)
    machine = {"cpu": "c", "num_cpus": 2, "memory_gib": 8}
    head = {"measured_at": "2026-11-22T00:00:00", "machine": machine, "versions": {},
            "commit": "x"}  # fmt: skip
    evidence = findings.tuned(run, run.winner(), Slo(ttft_s=0.5), "128 prompt tokens", head)
    comment = "\n".join(findings.comments(evidence, SUBJECT.pool))
    assert "engine.max_num_seqs: 64 -> 256" in comment
    assert "95 % CI" in comment


def with_laps(capacities_per_s: dict[str, float]) -> Tuning:
    """Candidates measured to their end at 10 and 20 requests/s, by what they set of ``max_num_seqs`` ("": nothing)."""
    run = tuning(FakeBench())
    for value, capacity_per_s in capacities_per_s.items():
        settings: Settings = {"engine.max_num_seqs": int(value)} if value else {}
        points = tuple(point(rate, capacity_per_s, 0.0) for rate in (10.0, 20.0))
        run.candidates[identity(settings)] = Candidate(settings, 0.1, [Visit(settings, LAP, 0, points, TOKENS)])
    return run


def test_a_config_that_held_the_slo_at_no_rate_is_told_so_and_not_compared(tmp_path: Path) -> None:
    run = with_laps({"": 1.0, "128": 15.0})
    found = findings.as_json(run, tmp_path)
    assert found["is_cheaper"] is True
    assert findings.verdict(found).startswith("max_num_seqs 128 holds the SLO, at $")
    machine = {"cpu": "c", "num_cpus": 2, "memory_gib": 8}
    head = {"measured_at": "2026-11-22T00:00:00", "machine": machine, "versions": {}, "commit": "x"}
    evidence = findings.tuned(run, run.winner(), Slo(ttft_s=0.5), "128 prompt tokens", head)
    assert evidence["usd_per_million_tokens_at_slo"]["before"]["value"] is None
    comment = "\n".join(findings.comments(evidence, SUBJECT.pool))
    assert "at the SLO: not held as it was -> " in comment
    assert "unknown" not in comment


def test_where_no_setting_holds_the_slo_the_verdict_says_that(tmp_path: Path) -> None:
    found = findings.as_json(with_laps({"": 1.0, "128": 1.0}), tmp_path)
    assert findings.verdict(found) == "No setting that was measured holds the SLO at a rate that was tried."
