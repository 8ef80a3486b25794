"""What of a start has been done, what is being done and for how long, from events and progress files. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.lifecycle.launch import DeploymentState


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the start. ``track`` is what it belongs to: the server itself, the gateway, or a pool's replica."""

    track: str
    name: str
    began_s: float
    ended_s: float | None = None

    def seconds(self, now_s: float) -> float:
        return (self.ended_s or now_s) - self.began_s

    @property
    def label(self) -> str:
        return f"{self.track}: {self.name}" if self.track else self.name


@dataclass
class StartProgress:
    """Collects steps; ``take_ended`` hands each one out once, when it has ended. Times are seconds since 1970."""

    _current: dict[str, Step] = field(default_factory=dict)
    _ended: list[Step] = field(default_factory=list)
    _seen: set[tuple[str, str, float]] = field(default_factory=set)

    def begin(self, track: str, name: str, now_s: float) -> None:
        """A step begins, and the one before it on the same track ends. Said again about the same step, nothing
        changes.
        """
        if (track, name, now_s) in self._seen:
            return
        self._seen.add((track, name, now_s))
        self.end(track, now_s)
        self._current[track] = Step(track, name, now_s)

    def end(self, track: str, now_s: float) -> None:
        """The track is done."""
        step = self._current.pop(track, None)
        if step is not None:
            self._ended.append(Step(step.track, step.name, step.began_s, now_s))

    def take_ended(self) -> list[Step]:
        ended, self._ended = self._ended, []
        return ended

    @property
    def current(self) -> list[Step]:
        """What is being done now, the oldest first."""
        return sorted(self._current.values(), key=lambda step: step.began_s)


def changes(before: tuple[DeploymentState, ...], after: tuple[DeploymentState, ...]) -> Iterator[tuple[str, str]]:
    """What an operator wants to hear about a running server: (its label, what happened to it)."""
    former = {state.name: state for state in before}
    for state in after:
        was = former.get(state.name)
        if was is None:
            continue
        is_lost = state.num_starting > 0 or state.status not in ("HEALTHY", "DOWNSCALING")
        if state.num_running < was.num_running and is_lost:
            yield state.label, f"lost a replica ({state.num_running} running); a new one is being started"
        elif state.num_running != was.num_running:
            yield state.label, f"{state.num_running} running"
        elif state.status == "UNHEALTHY" and was.status != state.status:
            yield state.label, "unhealthy"
