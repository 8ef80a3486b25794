"""The pages say what the code does: their links, paths, keys, commands and tables are held to it."""

import argparse
import re
from collections import Counter as Multiset
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from prometheus_client.metrics import MetricWrapperBase

from benchmarks.scenarios.faults import FAULTS
from serving.cli import parser
from serving.config.limits import Limits
from serving.config.server import ServerConfig
from serving.engine.sampling_counts import SamplingCollector, SamplingCounts
from serving.errors import ANSWERS, Answer
from serving.telemetry import metrics

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "docs", "kernels", "models", "requirements", "scripts", "serving", "tests")
PAGES = sorted({*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))})

FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
REPOSITORY_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*<>-]*")
CONFIG_KEY = re.compile(r"(server|limits)\.(?!json$)([a-z_]+)")  # server.json is a file
COMMAND = re.compile(r"(?:^|\s|/)ballast (?:ballast )?([a-z]\w*)")  # twice where compose names the service


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def every_page(function):  # type: ignore[no-untyped-def]
    return pytest.mark.parametrize("page", PAGES, ids=page_id)(function)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def code(page: Path) -> Iterator[str]:
    """Code spans, and lines of code blocks without their comments."""
    yield from CODE_SPAN.findall(prose(page))
    for block in FENCE.finditer(page.read_text()):
        yield from (line.partition("#")[0].strip() for line in block[0].splitlines())


def anchors(page: Path) -> set[str]:
    """A heading's anchor as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: Path, first_cell: str) -> list[list[str]]:
    """Cells of the table rows whose first cell matches ``first_cell`` whole."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    tables = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [cells for cells in tables if re.fullmatch(first_cell, cells[0])]


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/architecture.md", "docs/http.md", "docs/operations.md"} <= set(map(page_id, PAGES))


@every_page
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = page.parent / path if path else page
        is_missing = not found.exists() or not found.resolve().is_relative_to(ROOT)
        if is_missing or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


@every_page
def test_paths_of_the_repository_exist(page: Path) -> None:
    """A span such as `kernels/<op>/` stands for paths to come, and results are there once somebody has measured."""
    named = {path for span in CODE_SPAN.findall(prose(page)) if (path := span.split(" ")[0]) and "<" not in path}
    paths = {path for path in named if REPOSITORY_PATH.fullmatch(path) and not path.startswith("benchmarks/results/")}
    assert [path for path in sorted(paths) if not any(ROOT.glob(path.rstrip("/")))] == []


@every_page
def test_config_keys_exist(page: Path) -> None:
    known = {"server": set(ServerConfig.model_fields), "limits": set(Limits.model_fields)}
    keys = {match.groups() for span in code(page) if (match := CONFIG_KEY.fullmatch(span))}
    assert [f"{section}.{key}" for section, key in sorted(keys) if key not in known[section]] == []


@every_page
def test_commands_exist(page: Path) -> None:
    actions = parser()._subparsers._group_actions  # type: ignore[union-attr]  # argparse has no public way to ask
    known = next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices
    used = {command for text in code(page) for command in COMMAND.findall(text)}
    assert used - set(known) == set()


def test_the_http_page_lists_every_answer() -> None:
    """Status, type, code and whether a retry can help, as serving/errors.py has them."""
    listed = [
        Answer(int(status), kind.strip("`"), None if code == "null" else code.strip("`"), retry == "yes")
        for status, kind, code, retry, _ in rows(ROOT / "docs" / "http.md", r"\d{3}")
    ]
    assert Multiset(listed) == Multiset(ANSWERS.values())


def test_the_benchmarking_page_lists_every_fault_with_its_promise() -> None:
    listed = {tuple(row) for row in rows(ROOT / "docs/benchmarking.md", r"F\d+")}
    assert listed == {(fault.row, fault.name, fault.promise) for fault in FAULTS}


def test_the_operating_guide_lists_every_metric_with_its_labels() -> None:
    """By the name that a scrape shows."""
    listed = {cells[0].strip("`"): cells[1] for cells in rows(ROOT / "docs" / "operations.md", r"`ballast_\w+`")}
    declared = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            family = next(iter(metric.describe()))
            suffix = "_total" if family.type == "counter" else ""
            declared[family.name + suffix] = ", ".join(metric._labelnames)
    for family in SamplingCollector(SamplingCounts.made()).collect():  # a replica's own: the admin port adds whose
        suffix = "_total" if family.type == "counter" else ""
        declared[family.name + suffix] = ", ".join(["pool", "replica", *family.samples[0].labels])
    assert listed == declared


def test_no_page_names_a_metric_that_is_not_declared() -> None:
    listed = {cells[0].strip("`") for cells in rows(ROOT / "docs" / "operations.md", r"`ballast_\w+`")}
    used = {name for page in PAGES for name in re.findall(r"`(ballast_\w+)`", prose(page))}
    assert used <= listed
