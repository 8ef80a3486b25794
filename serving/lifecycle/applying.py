"""A config that takes another's place in a running server, looked after from time to time until it has or cannot.

    deploy new (with the pools that go) ─▸ deploy new ─▸ applied
                       └────────── deploy old ◂────┴─── a replica fails to start, or the time is over

Pools that go stay until the others are up. A step that fails takes all of them back: replicas that were not replaced
yet were never touched, and are what serves meanwhile.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from serving.change import with_removed_pools
from serving.config import Config
from serving.deployments import config_version
from serving.lifecycle import cause
from serving.lifecycle.control import Report
from serving.lifecycle.launch import DeploymentState, Rollout


class Deployer(Protocol):
    """What runs configs: `serving.cluster.Cluster`."""

    def check_room(self, config: Config) -> None:
        """Raises MachineError when replicas that ``config`` replaces could not come up."""

    def redeploy(self, config: Config) -> None: ...

    def rollout(self) -> Rollout: ...

    def deployments(self) -> Sequence[DeploymentState]: ...


class Applying:
    """One change on its way, from its construction on. ``look`` after it again and again; when it ``has_ended``,
    ``config`` is what is in force. Both raise MachineError when Ray is silent, the first also for want of room.
    """

    def __init__(self, cluster: Deployer, old: Config, new: Config, timeout_s: float, now_s: float) -> None:
        cluster.check_room(new)
        self._cluster = cluster
        self._old = old
        between = with_removed_pools(old, new)
        self._to_come = [new] if between is new else [between, new]
        self._timeout_s = timeout_s
        self._deadline_s = now_s + timeout_s
        self._told: dict[str, str] = {}
        self._failure = ""
        self.config = old
        self.has_ended = False
        self._next()

    def look(self, now_s: float) -> Iterator[Report]:
        """What has happened since the last look."""
        states = self._cluster.deployments()
        yield from self._news(states)
        rollout = self._cluster.rollout()
        if self._failure:
            yield from self._look_back(rollout, now_s)
        elif failure := _failure(rollout, states) or self._lateness(states, now_s):
            self._cluster.redeploy(self._old)
            self._failure = failure
            self._deadline_s = now_s + self._timeout_s
            yield Report("step", f"{failure}; going back to config {config_version(self._old)}")
        elif rollout.is_done:
            if self._to_come:
                self._next()
            else:
                self.has_ended = True
                yield Report("applied", f"config {config_version(self.config)} is in force")

    def _next(self) -> None:
        self._cluster.redeploy(self._to_come[0])
        self.config = self._to_come.pop(0)

    def _look_back(self, rollout: Rollout, now_s: float) -> Iterator[Report]:
        if not (rollout.is_done or now_s > self._deadline_s):
            return
        self.has_ended = True
        self.config = self._old
        word = "is in force" if rollout.is_done else "is being restored, and not whole yet: see ballast status"
        yield Report("failed", f"{self._failure}; the old config {config_version(self._old)} {word}")

    def _lateness(self, states: Sequence[DeploymentState], now_s: float) -> str:
        if now_s <= self._deadline_s:
            return ""
        waiting = [f"{state.label} ({state.message or state.status})" for state in states if not state.is_healthy]
        return f"not done within {self._timeout_s:g} s; still waiting for {', '.join(waiting) or 'Ray Serve'}"

    def _news(self, states: Sequence[DeploymentState]) -> Iterator[Report]:
        for state in states:
            words = f"{state.status.lower()}, {state.num_running} running"
            if state.num_starting:
                words += f", {state.num_starting} starting"
            if self._told.get(state.label) != words:
                self._told[state.label] = words
                yield Report("step", f"{state.label}: {words}")


def _failure(rollout: Rollout, states: Sequence[DeploymentState]) -> str:
    """Why it cannot be done; empty while it may. Ray Serve makes three attempts; the first that fails is enough."""
    for state in states:
        if state.status == "DEPLOY_FAILED" or "failed to start" in state.message:
            why = cause.root_cause(state.message) or (state.message.strip().splitlines() or [state.status])[-1]
            return f"{state.label} could not be started: {why}"
    return f"Ray Serve cannot run it: {rollout.message}" if rollout.has_failed else ""
