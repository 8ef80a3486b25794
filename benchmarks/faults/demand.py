"""Too much to do, or nobody to do it: overload, retries, one tenant's flood, cold starts, no replica at all."""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks import processes
from benchmarks.faults.acts import kill
from benchmarks.faults.engines import REPLACED_WITHIN_S
from benchmarks.faults.fault import Fault, Outcome, outcome_of
from benchmarks.faults.sites import (
    COLD,
    MAX_QUEUED,
    NONE,
    NUM_SLOTS,
    PREFILL_S,
    QUEUE_TIMEOUT_S,
    RETRY_FLOOR,
    SCRIPTED,
    SLOW,
    SLOW_START_S,
    STEP_S,
)
from benchmarks.faults.stage import SLO_TTFT_S, Stage
from benchmarks.load.traffic import Driver, Due, Mark, Run, Sent, percentile, poisson

NUM_REPLICAS = 2
OVERLOAD = 10.0
GOODPUT_SHARE = 0.9
NUM_HERD = 2000
RECOVERY_S = 10.0
MAX_GROWTH_MIB = 64
LEAST_SHARE = 0.35
"""Of two tenants that ask for the same, what the one that gets less should get of what is served."""
NUM_CLIENTS = 3 * NUM_REPLICAS * NUM_SLOTS + 2 * MAX_QUEUED
"""Of a retry storm: more than can run and wait, so that there are always some to refuse."""
FLOOD_WORDS = 2000
REFUSED_WITHIN_S = 0.1
LONGEST_TOLD_S = 120.0
"""What the openai client heeds."""


def _capacity_per_s(stage: Stage) -> float:
    """By the script: slots over the time of one answer."""
    return NUM_REPLICAS * NUM_SLOTS / (stage.output_tokens * STEP_S)


def _served_per_s(sent: Sequence[Sent], begin_s: float, end_s: float) -> float:
    """Whole answers per second of that time."""
    return sum(each.is_whole and begin_s <= each.end_s < end_s for each in sent) / (end_s - begin_s)


async def overloaded(stage: Stage) -> Outcome:
    """Two tenants ask for ten times what there is, each for half of it; then 2000 clients come in one moment."""
    stage.make_keys("left", "right")
    rate_per_s, seconds = _capacity_per_s(stage), stage.pace.overload_s
    calm = await stage.driver(tenant="left").drive(poisson([(seconds, 1.1 * rate_per_s)], stage.output_tokens, 1))
    peak_per_s = _served_per_s(calm.sent, 1.0, seconds)
    await _quiet(stage)
    rss_bytes = _rss_bytes(stage)
    drivers = [stage.driver(tenant=tenant) for tenant in ("left", "right")]
    phases = [(seconds, OVERLOAD / 2 * rate_per_s)]
    runs = await asyncio.gather(
        *(driver.drive(poisson(phases, stage.output_tokens, seed)) for seed, driver in enumerate(drivers))
    )
    ended_s = max(sent.end_s for run in runs for sent in run.sent if sent.is_whole)
    served_per_s = sum(_served_per_s(run.sent, 1.0, ended_s) for run in runs)
    herd = stage.driver(tenant="left")
    herded = await asyncio.gather(*(herd.send(Due(herd.run.now_s, f"herd {index}", 8)) for index in range(NUM_HERD)))
    grown_mib = (_rss_bytes(stage) - rss_bytes) / 2**20
    after = stage.driver(tenant="left")
    after.run.mark("the flood ends")
    await after.drive(stage.steady(stage.pace.after_s))
    await _quiet(stage)
    recovery_s = stage.effect(after.run).recovery_s
    flood = Run([sent for run in runs for sent in run.sent], [Mark(0.0, "10x overload")])
    refused, turned_away = _refusals(flood.sent), _refusals(herded)
    whole = [sum(sent.is_whole for sent in run.sent) for run in runs]
    checks = {
        "goodput is 90 % of what it was": served_per_s >= GOODPUT_SHARE * peak_per_s,
        "refused with 429 or 503 and Retry-After": all(
            sent.is_whole or _is_refusal(sent) for sent in [*flood.sent, *herded]
        ),
        "told to come back at different times": _num_waits([*refused, *turned_away]) > 20,
        "tenants share": min(whole) >= LEAST_SHARE * sum(whole),
        f"memory grows by less than {MAX_GROWTH_MIB} MiB": grown_mib < MAX_GROWTH_MIB,
        f"well again within {RECOVERY_S:g} s": recovery_s < RECOVERY_S,
    }
    figures = {
        "peak (1/s)": peak_per_s, "served (1/s)": served_per_s, "shares": f"{whole[0]}:{whole[1]}",
        "first token in time": sum(sent.is_whole and sent.ttft_s <= SLO_TTFT_S for sent in flood.sent),
        "refusal p50 (s)": _latency_s(refused, 0.5), "refusal p99 (s)": _latency_s(refused, 0.99),
        "herd served": sum(sent.is_whole for sent in herded), "herd refused p99 (s)": _latency_s(turned_away, 0.99),
        "memory (MiB)": round(grown_mib), "well again after (s)": recovery_s,
    }  # fmt: skip
    flood.sent += [sent for sent in herded if not sent.is_whole and not _is_refusal(sent)]
    return outcome_of(stage, flood, checks, figures)


async def _quiet(stage: Stage) -> None:
    """Until nothing is left of what came before."""
    await stage.until(lambda: stage.metric("ballast_requests_in_flight") == 0, 2 * QUEUE_TIMEOUT_S)


def _is_refusal(sent: Sent) -> bool:
    return sent.status in (429, 503) and sent.retry_after_s is not None


def _refusals(sent: Iterable[Sent]) -> list[Sent]:
    return [each for each in sent if _is_refusal(each)]


def _num_waits(refused: Iterable[Sent]) -> int:
    """How many different times clients were told to wait."""
    return len({round(sent.retry_after_s or 0.0, 2) for sent in refused})


def _latency_s(sent: Iterable[Sent], share: float) -> float:
    """From when it was due to the end of the answer."""
    return percentile(sorted(each.end_s - each.due.at_s for each in sent), share)


def _rss_bytes(stage: Stage) -> int:
    """Of gateways and HAProxy."""
    return sum(processes.rss_bytes(pid) for pid in [*stage.server.gateways(), *stage.server.edges()])


async def retry_storm(stage: Stage) -> Outcome:
    """Clients that send again at once whenever they are refused; meanwhile a replica dies."""
    stage.make_keys("left", "right")
    drivers = [stage.driver(tenant=tenant) for tenant in ("left", "right")]
    moved = stage.metric("ballast_failovers_total")
    end_s = time.monotonic() + stage.pace.before_s + stage.pace.overload_s
    clients = (_stubborn(drivers[index % 2], stage.output_tokens, end_s) for index in range(NUM_CLIENTS))
    storm = asyncio.gather(*clients)
    await asyncio.sleep(stage.pace.before_s)
    drivers[0].run.mark("SIGKILL replica")
    kill(stage.replicas()[0]["pid"])
    await storm
    await stage.settled(NUM_REPLICAS, timeout_s=REPLACED_WITHIN_S)
    run = Run([sent for driver in drivers for sent in driver.run.sent], drivers[0].run.marks)
    refused = _refusals(run.sent)
    num_moved = stage.metric("ballast_failovers_total") - moved
    budget = len(stage.server.gateways()) * max(RETRY_FLOOR, 0.2 * len(run.sent) / len(drivers))
    checks = {
        "retries to replicas stay within their budget": num_moved <= budget,
        "every failure is a refusal": all(_is_refusal(sent) for sent in run.failed),
        "told to come back at different times": _num_waits(refused) > 20,
        "some are served all the while": any(sent.is_whole for sent in run.sent),
    }
    figures = {"moved": num_moved, "budget": budget, "refused": len(refused), "different waits": _num_waits(refused)}
    await _quiet(stage)
    return outcome_of(stage, run, checks, figures)


async def _stubborn(driver: Driver, output_tokens: int, end_s: float) -> None:
    while time.monotonic() < end_s:
        await driver.send(Due(driver.run.now_s, "stubborn", output_tokens))


async def flooded(stage: Stage) -> Outcome:
    """One tenant sends long prompts, no two alike, four times as many as can be served; another goes on as before."""
    stage.make_keys("victim", "rude")
    victim, rude = stage.driver(tenant="victim"), stage.driver(tenant="rude")
    own = asyncio.create_task(victim.drive(stage.steady(stage.pace.before_s + stage.pace.after_s)))
    other = asyncio.create_task(rude.drive(_flood(stage)))
    await asyncio.sleep(stage.pace.before_s)
    victim.run.mark("one tenant floods")
    run, flood = await asyncio.gather(own, other)
    await _quiet(stage)
    at_s = run.marks[0].at_s
    before, after = (
        sorted(sent.ttft_s for sent in run.sent if sent.is_whole and (sent.due.at_s < at_s) is is_before)
        for is_before in (True, False)
    )
    baseline_s, p99_s = percentile(before, 0.99), percentile(after, 0.99)
    began_s = [sent.first_s for sent in flood.sent if sent.is_whole]
    overtaken = sorted(
        sum(sent.due.at_s + 2.0 * PREFILL_S < each_s < sent.first_s for each_s in began_s)
        for sent in run.sent
        if sent.is_whole and sent.due.at_s >= at_s
    )
    checks = {
        "the other tenant loses nothing": not run.failed,
        "half of its first tokens come as before": percentile(after, 0.5) <= 2.0 * percentile(before, 0.5),
        "nine in ten are in time": percentile(after, 0.9) <= SLO_TTFT_S,
        "what is refused is the flood, as one tenant's": bool(flood.failed) and all(map(_is_refusal, flood.failed)),
    }
    figures = {
        "TTFT p99 before (s)": baseline_s, "in the flood (s)": p99_s,
        "requests that went before (p50)": percentile(overtaken, 0.5), "(p99)": percentile(overtaken, 0.99),
        "the flood's own (s)": percentile(sorted(sent.ttft_s for sent in flood.sent if sent.is_whole), 0.99),
        "flood served": sum(sent.is_whole for sent in flood.sent), "flood refused": len(flood.failed),
    }  # fmt: skip
    return outcome_of(stage, run, checks, figures)


def _flood(stage: Stage) -> list[Due]:
    """Answers of many lengths, so that slots become free one by one."""
    rng, words = random.Random(2), " word" * FLOOD_WORDS
    phases = [(stage.pace.before_s, 0.0), (stage.pace.after_s, 4.0 * _capacity_per_s(stage))]
    due = poisson(phases, stage.output_tokens, 1, lambda index: f"{index}{words}")
    return [replace(each, output_tokens=rng.randint(1, 2 * stage.output_tokens)) for each in due]


async def cold_start(stage: Stage) -> Outcome:
    """Nothing is up: the first request waits for a start, and where that would take too long it is told how long."""
    driver = stage.driver(COLD)
    driver.run.mark("first request at zero replicas")
    impatient = stage.driver(SLOW)
    first, slow = await asyncio.gather(
        driver.send(Due(driver.run.now_s, "first", 10)), impatient.send(Due(0.0, "too slow", 10))
    )
    told_s = slow.retry_after_s or 0.0
    there_s = await stage.until(lambda: stage.replicas(SLOW), told_s)
    again = await impatient.send(Due(impatient.run.now_s, "again", 10))
    checks = {
        "it waits and is answered": first.is_whole and first.ttft_s < QUEUE_TIMEOUT_S,
        "one that would wait too long is told at once": slow.status == 503 and slow.end_s < 1.0,
        "and when to come back": 0.8 * SLOW_START_S <= told_s <= LONGEST_TOLD_S,
        "and finds a replica then": again.is_whole,
    }
    figures = {"waited (s)": first.ttft_s, "Retry-After (s)": told_s, "there after (s)": there_s}
    return outcome_of(stage, driver.run, checks, figures)


async def nowhere(stage: Stage) -> Outcome:
    """A model whose every pool is down and cannot come up."""
    driver = stage.driver(NONE)
    await driver.send(Due(0.0, "the first opens a connection", 10))
    driver = stage.driver(NONE)
    driver.run.mark("no pool can serve")
    run = await driver.drive(stage.steady(stage.pace.before_s))
    slowest = sorted(sent.end_s - sent.due.at_s for sent in run.sent)
    checks = {
        "503 with Retry-After": all(sent.status == 503 and sent.retry_after_s for sent in run.sent),
        f"half of them within {REFUSED_WITHIN_S:g} s": percentile(slowest, 0.5) <= REFUSED_WITHIN_S,
        "nothing piles up": stage.metric("ballast_requests_waiting", model=NONE) == 0,
    }
    return outcome_of(stage, run, checks, {"p50 (s)": percentile(slowest, 0.5), "p99 (s)": percentile(slowest, 0.99)})


FAULTS = (
    Fault("F21", "10x overload and a herd of 2000", SCRIPTED, "goodput >= 90 %, early refusals, fair", overloaded),
    Fault("F22", "retry storm", SCRIPTED, "retries within budget, Retry-After spread", retry_storm),
    Fault("F34", "one tenant floods", SCRIPTED, "another's TTFT stays what it was", flooded),
    Fault("F35", "cold start from zero", SCRIPTED, "waits and is answered, or 503 with the ETA", cold_start),
    Fault("F37", "no pool can serve", SCRIPTED, "503 in 100 ms, nothing piles up", nowhere),
)
