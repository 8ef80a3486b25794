"""One row of the parameter table, and how rows are written."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serving.gateway.checks import Anything, Check, Refused
from serving.gateway.request import RequestContext
from serving.gateway.rules import Rule


class Action(enum.Enum):
    """What becomes of a field."""

    PASSED = "passed"
    CAPPED = "capped"
    OVERWRITTEN = "overwritten"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row: its fate, the check of its value, why, and, where it is overwritten, with what (None: with nothing)."""

    action: Action
    check: Check
    reason: str = ""
    ours: Callable[[RequestContext], object] | None = None
    is_required: bool = False

    @property
    def is_sent(self) -> bool:
        return self.action in (Action.PASSED, Action.CAPPED)


@dataclass(frozen=True, slots=True)
class Form:
    """The request model of one endpoint: its fields, and the rules between them in the order they apply."""

    parameters: Mapping[str, Parameter]
    rules: tuple[Rule, ...] = ()


def passed(check: Check, reason: str = "") -> Parameter:
    return Parameter(Action.PASSED, check, reason)


def required(check: Check, reason: str = "") -> Parameter:
    return Parameter(Action.PASSED, check, reason, is_required=True)


def capped(check: Check, reason: str = "") -> Parameter:
    return Parameter(Action.CAPPED, check, reason)


def ignored(reason: str, check: Check = Anything()) -> Parameter:
    return Parameter(Action.IGNORED, check, reason)


def refused(reason: str, *harmless: object) -> Parameter:
    return Parameter(Action.REFUSED, Refused(reason, harmless), reason)


def overwritten(reason: str, ours: Callable[[RequestContext], object] | None = None) -> Parameter:
    return Parameter(Action.OVERWRITTEN, Anything(), reason, ours)
