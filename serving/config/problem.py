"""One finding about the config, with the line of the file where it stands."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from serving.errors import ConfigError, Problem

Location = tuple[str | int, ...]
"""Keys and list positions from the root to a value: ``("models", 0, "name")``."""


@dataclass(frozen=True)
class FileProblem(Problem):
    """A problem of a file; ``line`` counts from 1 and is None where no line holds it (a missing key, an override)."""

    line: int | None = None


def dotted(location: Location) -> str:
    """``("models", 0, "name")`` as ``models[0].name``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def shown(value: JsonValue) -> str:
    """A value as the file would have it, cut to one short line."""
    match value:
        case None | bool():
            text = {None: "null", True: "true", False: "false"}[value]
        case dict():
            text = "{" + ", ".join(str(key) for key in value) + "}"
        case list():
            text = f"a list of {len(value)}"
        case str():
            text = json.dumps(value, ensure_ascii=not value.isprintable())
        case _:
            text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def render_problems(origin: str, problems: Sequence[Problem]) -> str:
    """All problems for a terminal, one a line: where, why it is refused, what to write instead, what stands there."""
    noun = "problem" if len(problems) == 1 else "problems"
    lines = [f"{origin}: {len(problems)} {noun}", *(f"  {_line(problem)}" for problem in problems)]
    return "\n".join(line if line.isprintable() else line.encode("unicode_escape").decode() for line in lines)


def _line(problem: Problem) -> str:
    line = problem.line if isinstance(problem, FileProblem) else None
    where = "".join(f"{part}: " for part in (f"line {line}" if line else "", problem.path) if part)
    found = f" (found: {problem.value})" if problem.value else ""
    hint = f"; did you mean `{problem.suggestion}`?" if problem.suggestion else ""
    return f"{where}{problem.reason}{hint}{found}"


def config_error(origin: str, problems: Iterable[Problem]) -> ConfigError:
    """The error that carries ``problems``, its text complete for a terminal."""
    found = tuple(problems)
    return ConfigError(render_problems(origin, found), found)
