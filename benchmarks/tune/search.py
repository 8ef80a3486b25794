"""Which candidates are measured, for how long, and when one is given up. Knows nothing of servers: measuring is a
function that it is given.

First *short* visits: from the config as it is, one setting after the other is moved while that makes tokens cheaper
(coordinate descent), or every point of a grid. A candidate need not be measured to its end: it begins at the rate at
which it would cost what the best one costs, and one that misses the SLO there beyond doubt is dropped. Then *laps*:
those whose interval is not above the best one's, and always the config as it is, are measured in turn with longer
rounds, half as many after each lap (successive halving: Jamieson and Talwalkar 2016), so that what changes on the
machine meanwhile meets all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.runs.knee import Point
from benchmarks.tune.price import Cost, price, rate_at
from benchmarks.tune.settings import Pool, Settings, identity, usd_per_hour, words
from benchmarks.tune.space import Knob

SHORT, LAP = "short", "lap"
MOST_FINALISTS = 3
"""Beside the config as it is."""
BELOW = 0.8
"""Of the rate that is expected, where a lap begins: without a rate that holds for certain there is no interval."""
EXPLORING_SHARE = 0.5
"""Of the budget; the rest is for laps."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A server with one candidate's settings, started, measured and stopped. ``error``: why there are no (more) points.

    ``points`` are those of this visit, ``tokens_per_request`` the mean of prompt and answer. ``least_per_s``: the rate
    that it had to hold, and ``is_hopeless`` that it did not.
    """

    settings: Settings
    stage: str
    number: int
    points: tuple[Point, ...] = ()
    tokens_per_request: float = 0.0
    error: str | None = None
    least_per_s: float | None = None
    is_hopeless: bool = False
    wall_s: float = 0.0
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be measured. ``start_per_s``: the first rate. ``known``: rounds of earlier visits that it adds to."""

    settings: Settings
    stage: str
    number: int
    start_per_s: float | None = None
    least_per_s: float | None = None
    known: tuple[Point, ...] = ()


@dataclass(slots=True)
class Candidate:
    """Settings and what is known of them. ``why``: why it was dropped; None: it was not."""

    settings: Settings
    usd_per_hour: float
    visits: list[Visit] = field(default_factory=list)
    why: str | None = None

    def points(self, stage: str) -> tuple[Point, ...]:
        return tuple(point for visit in self.visits if visit.stage == stage for point in visit.points)

    @property
    def stage(self) -> str:
        """The last that it has rounds of: what its cost is of."""
        return LAP if self.points(LAP) else SHORT

    @property
    def tokens_per_request(self) -> float:
        weights = [(len(visit.points), visit.tokens_per_request) for visit in self.visits if visit.points]
        return sum(number * tokens for number, tokens in weights) / sum(number for number, _ in weights)

    def cost(self, objective: float, seed: int = 0) -> Cost | None:
        """None while nothing was measured."""
        points = self.points(self.stage)
        return price(points, objective, self.usd_per_hour, self.tokens_per_request, seed) if points else None


Measure = Callable[[Wish], Visit]
Invalid = Callable[[Settings], str | None]


class Nothing(Exception):
    """The config as it is cannot be measured; the message says why."""


@dataclass(slots=True)
class Tuning:
    """One run of the search; ``candidates`` is in the order of their first measuring, the config as it is first.

    ``problem_of`` says why settings cannot run here, ``budget_s`` what all visits may take, ``show`` hears of each one.
    """

    pool: Pool
    objective: float
    measure: Measure
    problem_of: Invalid
    budget_s: float
    show: Callable[[Candidate], None] = lambda _: None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    spent_s: float = 0.0

    @property
    def default(self) -> Candidate:
        return self.candidates[identity({})]

    def descend(self, knobs: Sequence[Knob]) -> None:
        """Short visits, by coordinate descent from the config as it is. Raises Nothing."""
        best = self._first()
        is_moving = True
        while is_moving:
            is_moving = False
            for knob in knobs:
                for step in (1, -1):
                    moved = self._line(knob, step, best)
                    is_moving |= moved is not best
                    best = moved

    def _line(self, knob: Knob, step: int, best: Candidate) -> Candidate:
        """From ``best`` on in one direction, as long as that is cheaper; the cheapest."""
        while (settings := knob.moved(best.settings, step)) is not None and self._may(EXPLORING_SHARE):
            tried = self._try(settings, best)
            if tried.why is not None or not self._is_cheaper(tried, best):
                break
            best = tried
        return best

    def measure_grid(self, points: Sequence[Settings]) -> None:
        """Short visits of every point, each to its end. Raises Nothing."""
        self._first()
        for settings in points:
            if not self._may(1.0):
                return
            self._try(settings, None)

    def _first(self) -> Candidate:
        default = self._try({}, None)
        if default.why is not None or not default.points(SHORT):
            raise Nothing(default.why or "nothing was measured")
        return default

    def _try(self, settings: Settings, best: Candidate | None) -> Candidate:
        """A short visit, unless there was one."""
        key = identity(settings)
        if key in self.candidates:
            return self.candidates[key]
        candidate = Candidate(settings, usd_per_hour(self.pool, settings))
        if problem := self.problem_of(settings):
            candidate.why = f"cannot run here: {problem}"
        else:
            start_per_s, least_per_s = self._rates(candidate, best)
            self._visit(candidate, Wish(settings, SHORT, 0, start_per_s, least_per_s))
        self.candidates[key] = candidate
        self.show(candidate)
        return candidate

    def _rates(self, candidate: Candidate, best: Candidate | None) -> tuple[float | None, float | None]:
        """Where to begin, and what must hold: the rates at which it costs what ``best`` does, and the most that may."""
        reference = best or self.candidates.get(identity({}))
        found = reference.cost(self.objective) if reference else None
        if reference is None or found is None or found.value == 0.0:
            return None, None
        tokens = reference.tokens_per_request
        start_per_s = rate_at(found.value, candidate.usd_per_hour, tokens)
        dearest = found.ci95[1]
        least_per_s = rate_at(dearest, candidate.usd_per_hour, tokens)
        # From there on each round can prove that it is too dear.
        return (min(start_per_s, least_per_s) or None, least_per_s or None) if best else (start_per_s or None, None)

    def _visit(self, candidate: Candidate, wish: Wish) -> None:
        visit = self.measure(wish)
        candidate.visits.append(visit)
        self.spent_s += visit.wall_s
        if visit.error is not None:
            candidate.why = visit.error
        elif visit.is_hopeless:
            candidate.why = (
                f"misses the SLO at {visit.least_per_s:.4g} requests/s, where it would cost what the best does"
            )

    def run_laps(self, most: int) -> None:
        """Up to ``most`` laps, as the budget allows, over those that may be the cheapest; one lap at least."""
        for lap in range(most):
            finalists = self._finalists(lap)
            if len(finalists) < 2 or (lap and not self._may(1.0)):
                return
            for candidate in finalists:
                points = candidate.points(LAP)
                cost = candidate.cost(self.objective)
                assert cost is not None, "only what was measured is a finalist"
                self._visit(
                    candidate, Wish(candidate.settings, LAP, lap, BELOW * cost.rate_per_s or None, None, points)
                )
                self.show(candidate)

    def _finalists(self, lap: int) -> list[Candidate]:
        """The config as it is, and half as many others as in the lap before."""
        alive = self.by_cost()
        most = max(1, MOST_FINALISTS // 2**lap)
        place = 0
        for candidate, cost in alive:
            if candidate is self.default:
                continue
            if cost.ci95[0] > alive[0][1].ci95[1]:
                candidate.why = f"dearer: its interval is above that of {words(alive[0][0].settings)}"
            elif place >= most:
                candidate.why = f"not among the {most} cheapest that lap {lap + 1} went on with"
            place += candidate.why is None
        return [self.default, *(each for each, _ in alive if each.why is None and each is not self.default)]

    def winner(self) -> Candidate:
        """The cheapest of those that are left, by their laps where there were any."""
        alive = self.by_cost()
        with_laps = [candidate for candidate, _ in alive if candidate.stage == LAP]
        return [*with_laps, *(candidate for candidate, _ in alive), self.default][0]

    def by_cost(self) -> list[tuple[Candidate, Cost]]:
        """Those that were measured and not dropped, the cheapest first."""
        costed = [(each, each.cost(self.objective)) for each in self.candidates.values() if each.why is None]
        return sorted(
            ((candidate, cost) for candidate, cost in costed if cost is not None), key=lambda each: each[1].value
        )

    def _is_cheaper(self, one: Candidate, other: Candidate) -> bool:
        first, second = one.cost(self.objective), other.cost(self.objective)
        return first is not None and second is not None and first.value < second.value

    def _may(self, share: float) -> bool:
        return self.spent_s < share * self.budget_s
