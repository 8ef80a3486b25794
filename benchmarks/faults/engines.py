"""What happens to engines and replicas: they die, hang, run out of memory, are poisoned, or fall silent."""

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.faults.acts import engine_core, kill
from benchmarks.faults.fault import Fault, Outcome, errors_of, outcome_of
from benchmarks.faults.sites import PAIR, REAL, SCRIPTED, SILENCE_S, WATCHDOG_S
from benchmarks.faults.stage import Stage, is_scripted, names, only_cut, texts
from benchmarks.load.traffic import Due, Sent
from benchmarks.server import Replica

REPLACED_WITHIN_S = 90.0
NUM_PROMPTS = 8
"""Of the steady traffic."""
NUM_LONG, LONG_THREES = 4, 500
"""Prompts of a few thousand tokens."""
STEP_BYTES = 2**28
"""More than a step maps."""
NOTICE_S = 4.0
"""Beyond a bound: the beat that looks, the stream's way to another replica, a machine that does other things."""


async def _lose(
    stage: Stage, name: str, inject: Callable[[Replica], Awaitable[None] | None], bound_s: float
) -> Outcome:
    """Lose one of two replicas; nobody is to wait longer than ``bound_s`` for a first token."""
    undisturbed = texts((await stage.driver().drive(stage.steady(NUM_PROMPTS / stage.pace.rate_per_s))).sent)
    before = stage.replicas()
    moved, lost = (stage.metric(name) for name in ("ballast_failovers_total", "ballast_requests_lost_total"))
    replaced_s: list[float] = []

    async def lose() -> None:
        if (awaited := inject(before[0])) is not None:
            await awaited
        await stage.until(lambda: names(before) - names(stage.replicas()), REPLACED_WITHIN_S)
        replaced_s.append(await stage.settled(2, timeout_s=REPLACED_WITHIN_S))

    run = await stage.disturbed(name, lose)
    checks = {
        "no request is lost": not run.failed and stage.metric("ballast_requests_lost_total") == lost,
        "answers are those of an undisturbed run": all(
            found == undisturbed[prompt] for prompt, found in texts(run.sent).items()
        ),
        "tokens are counted once": stage.counted_once(run),
        f"nobody waits longer than {bound_s:g} s": stage.effect(run).ttft_max_after_s < bound_s,
        "the replica is replaced": len(names(stage.replicas()) & names(before)) == 1,
    }
    num_moved = stage.metric("ballast_failovers_total") - moved
    return outcome_of(stage, run, checks, {"moved": num_moved, "replaced after (s)": replaced_s[0]})


async def engine_killed(stage: Stage) -> Outcome:
    return await _lose(stage, "SIGKILL EngineCore", lambda victim: kill(engine_core(victim)), NOTICE_S)


async def replica_killed(stage: Stage) -> Outcome:
    return await _lose(stage, "SIGKILL replica", lambda victim: kill(victim["pid"]), NOTICE_S)


async def actor_killed(stage: Stage) -> Outcome:
    return await _lose(stage, "SIGKILL actor", lambda victim: kill(stage.server.actors(victim["pool"])[0]), NOTICE_S)


async def replica_terminated(stage: Stage) -> Outcome:
    return await _lose(stage, "SIGTERM replica", lambda victim: kill(victim["pid"], signal.SIGTERM), NOTICE_S)


async def engine_hung(stage: Stage) -> Outcome:
    def stop(victim: Replica) -> None:
        kill(engine_core(victim), signal.SIGSTOP)

    return await _lose(stage, "SIGSTOP EngineCore", stop, WATCHDOG_S + NOTICE_S)


async def engine_out_of_memory(stage: Stage) -> Outcome:
    """Its address space is over what it may be, and prompts come whose tensors have to be mapped."""
    hungry = stage.driver()

    async def starve(victim: Replica) -> None:
        # Less than it has: what a step maps for a while may be mapped at this very moment, and be room for the next.
        _forbid_growth(engine_core(victim), num_bytes_less=STEP_BYTES)
        long_ = (Due(hungry.run.now_s, f"{index}" + " 7 8 9" * LONG_THREES, 8) for index in range(NUM_LONG))
        await asyncio.gather(*(hungry.send(due) for due in long_))

    outcome = await _lose(stage, "RLIMIT_AS on EngineCore", starve, WATCHDOG_S + NOTICE_S)
    return replace(
        outcome,
        checks={**outcome.checks, "the long prompts are answered too": not hungry.run.failed},
        errors={**outcome.errors, **errors_of(hungry.run)},
    )


async def starts_out_of_memory(stage: Stage) -> Outcome:
    """One replica dies and its successors fail to start, one after the other, until there is memory again."""
    victim = stage.replicas()[0]
    zygote = stage.server.named("ballast-zygote")[:1]
    attempts: list[int] = []

    async def crash_loop() -> None:
        began = _num_starts(stage)
        _forbid_growth(*zygote)
        kill(victim["pid"])
        await asyncio.sleep(stage.pace.after_s)
        attempts.append(_num_starts(stage) - began)
        for pid in zygote:
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    run = await stage.disturbed("no memory for a start", crash_loop)
    recovered_s = await stage.settled(2, timeout_s=REPLACED_WITHIN_S)
    checks = {
        "the other replica loses nothing": not run.failed,
        "starts are spaced out": attempts[0] <= 2 + stage.pace.after_s,
        "with memory, the replica comes back": recovered_s < REPLACED_WITHIN_S,
    }
    return outcome_of(stage, run, checks, {"starts tried": attempts[0], "back after (s)": recovered_s})


def _forbid_growth(*pids: int, num_bytes_less: int = 0) -> None:
    for pid in pids:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size - num_bytes_less, resource.RLIM_INFINITY))


def _num_starts(stage: Stage) -> int:
    """Replicas that have begun to start, ever: each has a file of its progress."""
    return sum(1 for _ in (stage.server.runtime_dir / "progress").glob("*/*"))


async def poisoned(stage: Stage) -> Outcome:
    """A request that kills whatever engine it meets, sent again by its client as soon as it fails."""
    poison = Due(0.0, "!die", 50)
    starts, quarantined = _num_starts(stage), stage.metric("ballast_requests_quarantined_total")
    driver = stage.driver()
    refused: list[Sent] = []

    async def insist() -> None:
        for _ in range(4):
            refused.append(await driver.send(poison))
            await asyncio.sleep(0.5)

    steady = stage.steady(stage.pace.before_s + stage.pace.after_s)
    # No two alike: who was under way on both engines is quarantined too, and so is whoever asks for the same.
    unlike = [replace(due, prompt=f"{number}: {due.prompt}") for number, due in enumerate(steady)]
    run = await stage.disturbed("poison", insist, unlike)
    await stage.settled(2, timeout_s=REPLACED_WITHIN_S)
    num_dead = _num_starts(stage) - starts
    checks = {
        "at most two engines die": num_dead <= 2,
        "it is refused with request_quarantined": all("request_quarantined" in str(sent.error) for sent in refused),
        "from then on with 422": all(sent.status == 422 for sent in refused[1:]),
        "there is an audit line": any(line.get("event") == "quarantined" for line in stage.log_lines()),
        "nobody else fails but who was under way with it": only_cut(run),
    }
    figures = {
        "engines that died": num_dead,
        "refusals": stage.metric("ballast_requests_quarantined_total") - quarantined,
        "bystanders": len(run.failed),
    }
    return outcome_of(stage, run, checks, figures)


async def replica_silent(stage: Stage) -> Outcome:
    """A replica's whole process stands still: it takes requests and says nothing."""
    victim = stage.replicas()[0]
    moved = stage.metric("ballast_failovers_total")

    async def stand_still() -> None:
        kill(victim["pid"], signal.SIGSTOP)
        await asyncio.sleep(SILENCE_S + NOTICE_S)
        kill(victim["pid"], signal.SIGCONT)

    run = await stage.disturbed("SIGSTOP replica", stand_still)
    await stage.settled(2)
    num_moved = stage.metric("ballast_failovers_total") - moved
    checks = {
        "no request is lost": not run.failed,
        "its requests have moved": num_moved > 0,
        "and say nothing twice, also when it is back": all(map(is_scripted, run.sent)),
        "nobody waits longer than the timeout": stage.effect(run).ttft_max_after_s < SILENCE_S + NOTICE_S,
    }
    return outcome_of(stage, run, checks, {"moved": num_moved})


async def always_silent(stage: Stage) -> Outcome:
    """A request to which every replica stays silent: it is tried twice, then it is over."""
    driver = stage.driver()

    async def stall() -> None:
        await driver.send(Due(driver.run.now_s, "!stall", 50))

    run = await stage.disturbed("!stall", stall, stage.steady(stage.pace.before_s + 2.0))
    [stalled] = driver.run.sent
    took_s = stalled.end_s - stalled.due.at_s
    checks = {
        "it ends with 504": stalled.status == 504 or "upstream_timeout" in str(stalled.error),
        "after two timeouts at most": took_s < 2 * SILENCE_S + NOTICE_S,
        "others go on": not run.failed,
    }
    return outcome_of(stage, run, checks, {"took (s)": took_s})


async def pool_lost(stage: Stage) -> Outcome:
    """Every replica of a pool at once, as when its only node goes; another pool may stand in."""
    before = [replica for replica in stage.replicas(PAIR) if replica["pool"] == "big"]
    back_s: list[float] = []

    async def lose() -> None:
        kill(replica["pid"] for replica in before)
        back_s.append(await stage.settled(2, PAIR, REPLACED_WITHIN_S, without=names(before)))

    run = await stage.disturbed("the pool's replicas die", lose, model=PAIR)
    stood_in = [sent for sent in run.sent if sent.fallback]
    checks = {
        "no request is lost": not run.failed,
        "the other pool stands in, and says so": any(sent.pool == "small" for sent in stood_in),
        "the pool is rebuilt": back_s[0] < REPLACED_WITHIN_S,
    }
    return outcome_of(stage, run, checks, {"stood in for": len(stood_in), "rebuilt after (s)": back_s[0]})


FAULTS = (
    Fault("F1", "SIGKILL of EngineCore", REAL, "0 lost, streams continued, identical", engine_killed),
    Fault("F2", "SIGKILL of the replica", REAL, "as F1", replica_killed),
    Fault("F2", "SIGKILL of the replica's actor", REAL, "as F1", actor_killed),
    Fault("F7", "a pool's node is lost", SCRIPTED, "the other pool stands in; rebuilt", pool_lost),
    Fault("F8", "SIGSTOP of EngineCore", REAL, "as F1, within the watchdog's time", engine_hung),
    Fault("F10", "engine out of memory", REAL, "as F1", engine_out_of_memory),
    Fault("F10", "no memory for a start", REAL, "0 lost, starts spaced out", starts_out_of_memory),
    Fault("F12", "poison request", SCRIPTED, "two engines at most, then 422", poisoned),
    Fault("F15", "SIGTERM of a replica", REAL, "as F1", replica_terminated),
    Fault("F36", "a replica falls silent", SCRIPTED, "moved after first_byte_timeout_s", replica_silent),
    Fault("F36", "every replica is silent", SCRIPTED, "504 after two timeouts", always_silent),
)
