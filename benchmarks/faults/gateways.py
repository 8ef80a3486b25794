"""What happens to what stands before the engines: gateways, HAProxy, Ray Serve's controller, the whole server."""

import asyncio
import signal
import time

from benchmarks.faults.acts import kill
from benchmarks.faults.fault import Fault, Outcome, outcome_of
from benchmarks.faults.sites import GRACE_S, SCRIPTED, STEP_S
from benchmarks.faults.stage import CUT_S, Stage, only_cut, under_way
from benchmarks.load.traffic import Due, Run
from serving.lifecycle.processes import start_ticks

BACK_WITHIN_S = 60.0
EDGE_BACK_S = 10.0
#: A replica says four times a second how many streams it has; one may be a scrape of its metrics.
FORGOTTEN_S = 3.0
NUM_LONG = 8
NUM_BUSY = 6
STOP_MARGIN_S = 20.0
#: Of a stream that a gateway's time to stop is too short for.
LONG_TOKENS = int(4 * GRACE_S / STEP_S)


async def _lose_gateway(
    stage: Stage, number: signal.Signals, schedule: list[Due] | None = None
) -> tuple[Run, float, float]:
    """The run, and the seconds until the gateway has ended and until there are two again."""
    await stage.settled(2)
    victim = stage.server.gateways()[-1]
    took_s: list[float] = []

    async def lose() -> None:
        kill(victim, number)
        took_s.append(await stage.until(lambda: victim not in stage.server.gateways(), BACK_WITHIN_S))
        took_s.append(took_s[0] + await stage.until(lambda: len(stage.server.gateways()) == 2, BACK_WITHIN_S))

    run = await stage.disturbed(f"{number.name} gateway", lose, schedule)
    return run, took_s[0], took_s[1]


async def gateway_killed(stage: Stage) -> Outcome:
    run, _, back_s = await _lose_gateway(stage, signal.SIGKILL)
    gauge_s = await stage.until(lambda: stage.metric("ballast_requests_in_flight") == 0, FORGOTTEN_S)
    streams_s = await stage.until(lambda: not any(one["load"]["streams"] for one in stage.replicas()), FORGOTTEN_S)
    checks = {
        "nothing fails but what it had in flight": only_cut(run),
        "the other gateway's requests go on": len(run.failed) < len(under_way(run)),
        "it is replaced": back_s < BACK_WITHIN_S,
        "its gauges are gone": gauge_s < FORGOTTEN_S,
        "replicas hold nothing for it": streams_s < FORGOTTEN_S,
    }
    return outcome_of(stage, run, checks, {"replaced after (s)": back_s})


async def gateway_terminated(stage: Stage) -> Outcome:
    """It is heard at once: HAProxy passes the gateway over, what it has ends in its time, or with an error frame."""
    seconds = stage.pace.before_s + stage.pace.after_s
    schedule = [*(Due(0.0, f"long {index}", LONG_TOKENS) for index in range(NUM_BUSY)), *stage.steady(seconds)]
    run, ended_s, back_s = await _lose_gateway(stage, signal.SIGTERM, schedule)
    asked_s = run.marks[0].at_s
    cut = run.failed
    checks = {
        "what ends in time ends well": all(str(sent.due.prompt).startswith("long") for sent in cut),
        "what does not ends with an error frame": all("engine_unavailable" in str(sent.error) for sent in cut),
        "it has its time": all(sent.end_s - asked_s > GRACE_S - 1.0 for sent in cut),
        "the other gateway's requests go on": 0 < len(cut) < NUM_BUSY,
        "it is replaced": back_s < BACK_WITHIN_S,
    }
    figures = {"ended with an error frame": len(cut), "ended after (s)": ended_s, "replaced after (s)": back_s}
    return outcome_of(stage, run, checks, figures)


async def reloads(stage: Stage) -> Outcome:
    """Streams through one gateway while the other one is replaced again and again, which makes HAProxy reload."""
    surviving, victim = stage.server.gateways()
    kill(victim)
    await stage.until(lambda: len(stage.server.gateways()) == 1, 5.0)
    await asyncio.sleep(CUT_S)
    num_tokens = int(stage.pace.long_stream_s / STEP_S)
    workers = set(stage.server.edges())

    async def replace_others() -> None:
        end_s = time.monotonic() + stage.pace.long_stream_s - stage.pace.before_s
        while time.monotonic() < end_s:
            await stage.settled(2, timeout_s=BACK_WITHIN_S)
            workers.update(stage.server.edges())
            await asyncio.sleep(stage.pace.before_s)
            kill(set(stage.server.gateways()) - {surviving})

    schedule = [Due(0.0, f"long {index}", num_tokens) for index in range(NUM_LONG)]
    run = await stage.disturbed("HAProxy reloads", replace_others, schedule)
    await stage.settled(2, timeout_s=BACK_WITHIN_S)
    checks = {
        "no stream breaks": not run.failed,
        "HAProxy did reload": len(workers) > 1,
        "their gateway is the same": surviving in stage.server.gateways(),
    }
    return outcome_of(stage, run, checks, {"HAProxy processes seen": len(workers)})


async def edge_killed(stage: Stage) -> Outcome:
    back_s: list[float] = []

    async def lose() -> None:
        kill(stage.server.edges())
        back_s.append(await stage.until(stage.is_ready, BACK_WITHIN_S))

    run = await stage.disturbed("SIGKILL HAProxy", lose)
    cut, recovery_s = under_way(run), stage.effect(run).recovery_s
    checks = {
        "connections break or are refused, or it says 503": all(
            "connect" in str(sent.error) or sent.status == 503 or sent in cut for sent in run.failed
        ),
        f"all is well again after {EDGE_BACK_S:g} s": max(recovery_s, back_s[0]) < EDGE_BACK_S,
    }
    return outcome_of(stage, run, checks, {"ready after (s)": back_s[0]})


async def controller_killed(stage: Stage) -> Outcome:
    """Its successor finds what it left in Ray's key-value store (GCS). On one node that store is the head's: when it
    dies, Ray ends with all its processes, `ballast up` says so and exits with 3, and the server is started anew.
    """
    replicas = {replica["replica"] for replica in stage.replicas()}
    gateways = stage.server.gateways()
    targets = stage.targets()
    back_s: list[float] = []

    async def lose() -> None:
        kill(stage.server.named("ServeController"))
        killed_s = time.time()
        back_s.append(await stage.until(lambda: stage.board_at_s() > killed_s + CUT_S, BACK_WITHIN_S))

    run = await stage.disturbed("SIGKILL controller", lose)
    checks = {
        "requests go on": not run.failed,
        "the autoscaler is back": back_s[0] < BACK_WITHIN_S,
        "it takes no wrong step": stage.targets() == targets,
        "nothing is deployed again": {replica["replica"] for replica in stage.replicas()} == replicas
        and stage.server.gateways() == gateways,
    }
    return outcome_of(stage, run, checks, {"autoscaler back after (s)": back_s[0]})


async def server_stopped(stage: Stage) -> Outcome:
    """The last fault of a site: after it there is no server."""
    await stage.settled(2)  # those that the fault before has silenced may still be on their way back
    short_tokens = int(GRACE_S / 2 / STEP_S)
    # Both kinds are under way when it is told to stop.
    schedule = [Due(0.0, f"long {index}", LONG_TOKENS) for index in range(NUM_BUSY)]
    schedule += [Due(stage.pace.before_s - GRACE_S / 4, f"short {index}", short_tokens) for index in range(NUM_BUSY)]
    left = stage.server.processes
    noticed: list[float] = []
    runtime_dir = stage.server.runtime_dir

    async def stop() -> None:
        kill(stage.server.pid, signal.SIGTERM)
        noticed.append(await stage.until(lambda: not stage.is_ready(), GRACE_S))

    run = await stage.disturbed("SIGTERM ballast up", stop, schedule)
    asked_s = run.marks[0].at_s
    code = await asyncio.to_thread(stage.server.process.wait, GRACE_S + STOP_MARGIN_S)
    ended_s = run.now_s
    of_kind = {kind: [sent for sent in run.sent if str(sent.due.prompt).startswith(kind)] for kind in ("short", "long")}
    checks = {
        "not ready at once": noticed[0] < 2.0,
        "what ends in time ends well": all(sent.is_whole and sent.end_s > asked_s for sent in of_kind["short"]),
        "what does not ends with an error frame": all(
            "engine_unavailable" in str(sent.error) for sent in of_kind["long"]
        ),
        "it has its time": all(sent.end_s - asked_s > GRACE_S - 1.0 for sent in of_kind["long"]),
        "exit code 0": code == 0,
        "no process is left": not any(start_ticks(pid) for pid in left) and not runtime_dir.exists(),
    }
    figures = {"not ready after (s)": noticed[0], "stopped after (s)": round(ended_s - asked_s, 1)}
    return outcome_of(stage, run, checks, figures)


FAULTS = (
    Fault("F3", "SIGKILL of a gateway", SCRIPTED, "only its own requests fail; replaced", gateway_killed),
    Fault("F4", "HAProxy reloads under streams", SCRIPTED, "0 broken", reloads),
    Fault("F5", "SIGKILL of HAProxy", SCRIPTED, "connection errors only, back in 10 s", edge_killed),
    Fault("F6", "SIGKILL of Serve's controller", SCRIPTED, "requests go on; no wrong step after", controller_killed),
    Fault("F15", "SIGTERM of a gateway", SCRIPTED, "finish in time or an error frame; replaced", gateway_terminated),
    Fault("F15", "SIGTERM of `ballast up`", SCRIPTED, "finish in time or an error frame; exit 0", server_stopped),
)
