"""The page is self-contained, leads with the verdict, and shows what was measured and nothing that was not."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # the set of requirements/bench.txt; nothing that serves needs it

from benchmarks.load.mistake import BenchError
from benchmarks.report.charts import server_chart, with_cpu_cores
from benchmarks.report.page import write_report
from benchmarks.report.series import series
from benchmarks.runs import document as documents
from benchmarks.runs.slo import Slo
from serving.cli import main
from tests.benchmarks.conftest import GENEROUS
from tests.benchmarks.test_rows import FAILED, row, rows_of


@pytest.fixture(scope="module")
def run(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("report") / "run"
    slo = ("--slo", "ttft=1h,objective=0.8")
    main(["bench", "serve", "--url", url, "--rate", "60", "--duration", "1s", *slo, *GENEROUS, "--out", str(out)])
    return out  # type: ignore[return-value]


def test_the_page_loads_nothing_and_leads_with_the_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(run)]) == 0
    page = run / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert [source[:40] for source in sources if not source.startswith("data:") and "jsonl" not in source] == [
        "run.json"
    ]
    assert "<script" not in text
    order = [
        text.index(words) for words in ("SLO HELD", "in SLO", "Percentiles", "Over time", "Errors", "How it was made")
    ]
    assert order == sorted(order)
    assert {path.name for path in run.glob("*.png")} == {"tails.png", "time-0.png"}


def test_what_a_server_says_cannot_become_markup(run: Path) -> None:
    found = documents.read(run)
    found.document["rounds"][0]["errors"] = [{"status": 500, "error": "<script>alert(1)</script>", "number": 1,
                                              "first_s": 0.0, "last_s": 1.0, "request_ids": ["<b>"]}]  # fmt: skip
    found.document["target"]["model"] = "<b>"
    text = write_report(found).read_text()
    assert "<script" not in text
    assert "<b>" not in text


def test_marks_cost_and_leaks_are_shown_where_there_are_any(run: Path) -> None:
    found = documents.read(run)
    assert "<h2>Cost</h2>" not in write_report(found).read_text()
    first = found.document["rounds"][0]
    first["marks"] = [{"at_s": 0.5, "name": "kill"}]
    first["cost"] = [{"pool": "cpu", "usd_per_hour": 0.1, "num_tokens": 5, "usd_per_million_tokens": 2.0,
                      "usd_per_million_tokens_at_slo": None, "basis": "as the server said"}]  # fmt: skip
    found.document["leaks"] = {"rss_mib": {"level": 1.0, "per_hour": 9.0, "ci95_per_hour": [1.0, 2.0], "is_leak": True}}
    text = write_report(found).read_text()
    assert "<h2>Cost</h2>" in text
    assert "<h2>Growth</h2>" in text
    assert '<td>memory</td><td class="words">MiB</td><td>1.0</td><td>+9.00</td>' in text


def test_an_interrupted_run_says_so_first(run: Path) -> None:
    found = documents.read(run)
    found.document["status"] = "interrupted"
    text = write_report(found).read_text()
    assert 'class="verdict">This run is not complete: interrupted' in text


def test_a_run_that_was_interrupted_before_its_first_round_has_a_page(run: Path) -> None:
    found = documents.read(run)
    found.document.update(status="interrupted", rounds=[])
    assert "This run is not complete: interrupted" in write_report(found).read_text()


def test_after_faults_a_missed_slo_stays_bad_news(run: Path) -> None:
    found = documents.read(run)
    found.document["rounds"][0]["marks"] = []
    found.document["rounds"][0]["goodput"] |= {"is_slo_held": False}
    found.document["chaos"] = {"num_faults": 0, "num_recovered": 0, "is_recovered": True, "max_recovery_s": None,
                               "longest_recovery_s": None}  # fmt: skip
    text = write_report(found).read_text()
    assert 'class="verdict good">RECOVERED' in text
    assert 'class="verdict">SLO MISSED' in text


def test_rates_over_time_add_up_to_what_was_sent(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [row(0.05 * at, **(FAILED if at % 10 == 0 else {})) for at in range(200)])
    found = series(rows, Slo(ttft_s=0.05))
    width_s = float(found.at_s[1] - found.at_s[0])
    totals = [round(float(column.sum()) * width_s) for column in
              (found.offered_per_s, found.answered_per_s, found.failed_per_s, found.in_slo_per_s)]  # fmt: skip
    assert totals == [200, 180, 20, 0]
    assert np.nanmedian(found.ttft_p50_ms) == pytest.approx(100.0)


def test_a_failure_long_after_the_last_answer_has_its_place_over_time(tmp_path: Path) -> None:
    rows = [row(0.1 * at, **(FAILED | {"end_s": 600.0} if at == 7 else {})) for at in range(100)]
    found = series(rows_of(tmp_path, rows), Slo())
    assert found.at_s[found.failed_per_s > 0.0].tolist() == [pytest.approx(600.0, rel=0.05)]


def test_a_server_that_says_nothing_has_no_panels() -> None:
    assert server_chart([{"at_s": 0.0}, {"at_s": 1.0}]) is None
    timeline = [{"at_s": float(at), "cpu_s": 0.5 * at, "running_requests": 1.0} for at in range(5)]
    assert server_chart(timeline) is not None
    assert [each.get("cpu_cores") for each in with_cpu_cores(timeline)] == [None, 0.5, 0.5, 0.5, 0.5]


def test_a_folder_that_cannot_be_written_to_is_told(run: Path) -> None:
    found = documents.Found(documents.read(run).document, Path("/proc/self"))  # where even root makes no file
    with pytest.raises(BenchError, match=r"nothing can be written there.*copy the run"):
        write_report(found)


def test_a_run_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err
