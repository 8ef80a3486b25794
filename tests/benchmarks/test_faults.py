"""The table of faults is of those that were asked for."""

import sys

import pytest

from benchmarks.scenarios import faults


@pytest.mark.parametrize("rows", ["F99", "F1,F99", ""])
def test_a_row_that_there_is_none_of_is_refused(
    rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faults, "play", lambda *_: iter(()))
    monkeypatch.setattr(sys, "argv", ["faults", "--only", rows])
    with pytest.raises(SystemExit) as stopped:
        faults.main()
    assert stopped.value.code == 2
    assert "there are F0, F1, " in capsys.readouterr().err
