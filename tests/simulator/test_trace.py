"""Every trace format is read as the same requests."""

import gzip
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.simulator.trace import Trace, TraceError, read_trace

OURS = "arrival_s,prompt_tokens,output_tokens\n10.0,100,5\n12.5,200,7\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,100,5\n2023-11-16 18:15:49.1805900,200,7\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,100,5\n2024-05-10 00:00:02.509930+00:00,200,7\n"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,100,5,105,x\n6,ChatGPT,300,0,300,x\n7.5,GPT-4,200,7,207,x\n"
)
MOONCAKE = (
    '{"timestamp": 27500, "input_length": 200, "output_length": 7, "hash_ids": [1]}\n\n'
    '{"timestamp": 25000, "input_length": 100, "output_length": 5, "hash_ids": [1]}\n'
)


@pytest.mark.parametrize("text", [OURS, AZURE, AZURE_2024, BURST, MOONCAKE])
def test_formats(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write(text)
    for name in ("t.csv", "t.csv.gz"):
        trace = read_trace(tmp_path / name)
        assert trace.name == "t"
        assert list(trace.arrival_s) == pytest.approx([0.0, 2.5])
        assert list(trace.prompt_tokens) == [100, 200]
        assert list(trace.output_tokens) == [5, 7]
    assert len(trace.part(1.0, 9.0)) == 1


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "arrival_s,prompt_tokens,output_tokens\nx,1,1\n", '{"timestamp": 1}\n']
)
def test_what_is_no_trace_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"t\.csv"):
        read_trace(path)


HEADER = "arrival_s,prompt_tokens,output_tokens\n0,1,1\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}nan,1,1\n", f"{HEADER}inf,1,1\n", f"{HEADER}1,inf,1\n", f"{HEADER}1,1,1e30\n", f"{HEADER}1,1\n",
        f"{HEADER}1,1,{'9' * 200_000}\n", '{"timestamp": NaN, "input_length": 1, "output_length": 1}\n',
        '{"timestamp": 1, "input_length": Infinity, "output_length": 1}\n',
    ],
)  # fmt: skip
def test_a_row_that_is_no_request_is_named_by_its_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    line = text.count("\n")
    with pytest.raises(TraceError, match=rf"t\.csv, line {line}: .*mend this line or remove it"):
        read_trace(path)


def test_a_damaged_archive_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    whole = gzip.compress(OURS.encode())
    path.write_bytes(whole[:10] + bytes(255 - byte for byte in whole[10:]))
    with pytest.raises(TraceError, match=r"t\.csv\.gz: cannot be read"):
        read_trace(path)


def test_requests_that_all_come_at_once_have_no_rate_to_change() -> None:
    at_once = Trace("t", array("d", [0.0, 0.0]), array("l", [9, 9]), array("l", [9, 9]))
    with pytest.raises(TraceError, match="replay it as it is"):
        at_once.resampled(60.0, 1.0, seed=1)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError):
        read_trace(tmp_path / "none.csv.gz")


def test_a_trace_is_resampled_to_any_span_and_rate_the_same_way_each_time(poisson: Callable[..., Trace]) -> None:
    trace = poisson(2.0, 1200.0)
    longer = trace.resampled(3600.0, 5.0, seed=1)
    assert longer.span_s == pytest.approx(3600.0, abs=10.0)
    assert len(longer) == pytest.approx(18_000, rel=0.01)
    assert sorted(longer.arrival_s) == list(longer.arrival_s)
    assert set(longer.prompt_tokens) <= set(trace.prompt_tokens)
    assert trace.resampled(3600.0, 5.0, seed=1) == longer
    assert len(trace.resampled(600.0, 0.5, seed=1)) == pytest.approx(300, rel=0.3)


def test_the_rate_is_as_asked_where_the_last_lap_is_cut_before_the_traces_busy_end() -> None:
    times_s = [*(float(at_s) for at_s in range(0, 3000, 10)), *(3000.0 + 0.25 * at for at in range(2401))]
    trace = Trace("late rush", array("d", times_s), array("l", [9] * len(times_s)), array("l", [9] * len(times_s)))
    for span_s in (2500.0, 6000.0, 20_000.0):
        resampled = trace.resampled(span_s, 7.3, seed=1)
        assert len(resampled) / span_s == pytest.approx(7.3, rel=0.01)
        assert resampled.span_s <= span_s
