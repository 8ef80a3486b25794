"""Traces of a known shape."""

from array import array
from pathlib import Path

import pytest

from benchmarks.simulator.shapes import SHAPES, main, shaped
from benchmarks.simulator.trace import Trace, read_trace

LENGTHS = Trace("real", array("d", [0.0, 1.0]), array("l", [100, 200]), array("l", [5, 7]))


@pytest.mark.parametrize("name", SHAPES)
def test_the_rate_is_the_shapes(name: str) -> None:
    shape, trace = SHAPES[name], shaped(name, LENGTHS)
    expected = sum(shape.rate_per_s(second + 0.5) for second in range(round(shape.span_s)))
    assert len(trace) == pytest.approx(expected, rel=0.05)
    assert list(trace.arrival_s) == sorted(trace.arrival_s)
    assert set(zip(trace.prompt_tokens, trace.output_tokens, strict=True)) == {(100, 5), (200, 7)}


def test_a_flash_crowd_comes_and_goes() -> None:
    trace = shaped("flash", LENGTHS)
    assert len(trace.part(10_000.0, 10_900.0)) > 10 * len(trace.part(9_000.0, 9_900.0))
    assert len(trace.part(11_000.0, 11_900.0)) < 2_500


def test_what_is_written_is_read_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "real.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n1.0,200,7\n")
    assert main(["--lengths", str(tmp_path / "real.csv"), "--out", str(tmp_path / "shapes")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(SHAPES)
    read = read_trace(tmp_path / "shapes" / "trickle_real.csv.gz")
    assert list(read.prompt_tokens) == list(shaped("trickle", LENGTHS).prompt_tokens)
    assert main(["--lengths", str(tmp_path / "none.csv"), "--out", str(tmp_path)]) == 2
