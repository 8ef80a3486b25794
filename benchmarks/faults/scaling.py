"""Replicas that come and go: by order, a hundred times, and with the node that they run on."""

import asyncio
from collections.abc import Iterator
from itertools import count

from benchmarks import processes
from benchmarks.faults.acts import kill
from benchmarks.faults.by_hand import set_targets
from benchmarks.faults.engines import REPLACED_WITHIN_S
from benchmarks.faults.fault import Fault, Outcome, outcome_of
from benchmarks.faults.sites import BY_HAND, GRACE_S, STEP_S, SWING, WIDE
from benchmarks.faults.stage import Stage, is_scripted, names, only_cut
from benchmarks.load.traffic import Driver, Due, Run

SCALED_WITHIN_S = 40.0
MAX_PLACEMENTS = 12
RATE_SHARE = 0.35
"""Of the steady traffic's rate: answers are four times as long here, and one replica has to carry them."""
LENGTHS_S = (1.0, 1.0, 1.0, 0.75 * GRACE_S, 1.5 * GRACE_S)
"""Answers by turns: short, nearly as long as a replica that stops has time, and longer: those are moved."""


async def scaled(stage: Stage) -> Outcome:
    """A pool goes from one replica to two and back, again and again, while streams run all the time."""
    driver, enough = stage.driver(SWING), asyncio.Event()
    traffic = asyncio.create_task(_send_until(enough, driver, RATE_SHARE * stage.pace.rate_per_s))
    seen: set[str] = set()
    num_ups = 0
    await asyncio.sleep(stage.pace.before_s)
    driver.run.mark("scale up and down")
    for _ in range(stage.pace.num_cycles):
        if await _scale(stage, 2) > SCALED_WITHIN_S:
            break
        num_ups += 1
        seen |= names(stage.replicas(SWING))
        if await _scale(stage, 1) > SCALED_WITHIN_S:
            break
    took_s = driver.run.now_s - driver.run.marks[0].at_s
    enough.set()
    run = await traffic
    checks = {
        "it went up and down as often as asked": num_ups == stage.pace.num_cycles,
        "every time to another replica": len(seen) > num_ups,
        "ballast_requests_lost_total is 0": stage.metric("ballast_requests_lost_total") == 0,
        "every stream is whole": not run.failed and all(map(is_scripted, run.sent)),
        "tokens are counted once": stage.counted_once(run),
    }
    figures = {"ups and downs": num_ups, "seconds each": took_s / max(1, num_ups)}
    figures["moved"] = stage.metric("ballast_failovers_total", model=SWING)
    return outcome_of(stage, run, checks, figures)


async def _scale(stage: Stage, num_replicas: int) -> float:
    """Seconds until it is so."""
    set_targets(stage.server.state_dir / "decisions", {SWING: num_replicas})
    return await stage.until(lambda: len(stage.replicas(SWING)) == num_replicas, SCALED_WITHIN_S)


async def _send_until(enough: asyncio.Event, driver: Driver, rate_per_s: float) -> Run:
    tasks = []
    for due in _endless(rate_per_s):
        if enough.is_set():
            break
        await asyncio.sleep(due.at_s - driver.run.now_s)
        tasks.append(asyncio.create_task(driver.send(due)))
    await asyncio.gather(*tasks)
    return driver.run


def _endless(rate_per_s: float) -> Iterator[Due]:
    for index in count():
        yield Due(index / rate_per_s, f"request {index}", int(LENGTHS_S[index % len(LENGTHS_S)] / STEP_S))


async def node_lost(stage: Stage) -> Outcome:
    """The second node's raylet is killed, and with it whatever ran there; after a while the node is back."""
    await _part_gateways(stage)
    before = names(stage.replicas(WIDE))
    back_s: list[float] = []

    async def lose() -> None:
        kill(_second_raylet(stage))
        await stage.until(lambda: before - names(stage.replicas(WIDE)), REPLACED_WITHIN_S)
        back_s.append(await stage.settled(2, WIDE, REPLACED_WITHIN_S))

    run = await stage.disturbed("SIGKILL raylet", lose, model=WIDE)
    checks = {
        "nothing fails but what a gateway there had in flight": only_cut(run),
        "requests go on": any(sent.is_whole and sent.due.at_s > run.marks[0].at_s for sent in run.sent),
        "the pool had shrunk": len(names(stage.replicas(WIDE)) & before) == 1,
        "and is whole when there is room": back_s[0] < REPLACED_WITHIN_S,
    }
    return outcome_of(stage, run, checks, {"whole after (s)": back_s[0]})


async def _part_gateways(stage: Stage) -> None:
    """Have a gateway on each node: Ray Serve places them at random, and who has both on one node loses both with it.

    Raises RuntimeError when chance is against it.
    """
    for _ in range(MAX_PLACEMENTS):
        gateways = stage.server.gateways()
        away = set(gateways) & set(processes.children([_second_raylet(stage)]))
        if 0 < len(away) < len(gateways):
            return
        await _replace_gateway(stage, gateways[-1])
    raise RuntimeError(f"all gateways were placed on one node {MAX_PLACEMENTS} times")


async def _replace_gateway(stage: Stage, victim: int) -> None:
    kill(victim)
    await stage.until(lambda: victim not in stage.server.gateways(), REPLACED_WITHIN_S)
    await stage.settled(2, WIDE, REPLACED_WITHIN_S)


def _second_raylet(stage: Stage) -> int:
    return stage.server.named("/raylet/raylet ")[-1]


FAULTS = (
    Fault("F7", "a node is lost", BY_HAND, "the pool shrinks, goes on, is rebuilt", node_lost),
    Fault("F0", "scale-ups and downs under load", BY_HAND, "ballast_requests_lost_total is 0", scaled),
)
"""Nothing breaks in F0."""
