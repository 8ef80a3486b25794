"""What `ballast up` shows, to a reader that may leave."""

import os

import pytest

from serving.commands.up_output import JsonOutput, Output, PlainOutput


@pytest.mark.parametrize(
    ("output", "stream"), [(PlainOutput(), "stdout"), (JsonOutput(), "stdout"), (PlainOutput(), "stderr")]
)
def test_a_reader_that_has_left_stops_nothing(output: Output, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(f"sys.{stream}", broken)
        for number in range(3):
            output.log_line(f"line {number}")
            output.say("stopping", "Stopping.")
        assert os.fstat(broken.fileno()).st_rdev == os.stat(os.devnull).st_rdev, "the rest goes nowhere"
