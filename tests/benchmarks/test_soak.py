"""A leak is told from noise, from settling, and from a machine's weather."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.runs import document as documents
from benchmarks.runs import soak
from benchmarks.runs.leak import slope_of
from benchmarks.runs.soak import leaks
from benchmarks.runs.words import growth_rows
from serving.cli import main
from tests.benchmarks.conftest import GENEROUS, interrupted


def noise(number: int, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Autocorrelated, as memory is."""
    steps = np.random.default_rng(seed).normal(0.0, 1.0, number)
    return np.array([steps[max(0, at - 5) : at + 1].sum() for at in range(number)])


def timeline(**per_hour: float) -> list[dict[str, float]]:
    """Two hours, a sample every ten seconds; memory rises steeply in the first quarter, as caches fill."""
    at_s = np.arange(0.0, 7200.0, 10.0)
    weather = noise(len(at_s))
    level = {"rss_mib": 1000.0, "num_fds": 90.0, "num_threads": 40.0, "num_processes": 4.0}
    found = []
    for at, here in zip(at_s.tolist(), weather.tolist(), strict=True):
        sample = {name: value + per_hour.get(name, 0.0) * at / 3600.0 for name, value in level.items()}
        sample["rss_mib"] += 200.0 * min(1.0, at / 1800.0) + here
        found.append({"at_s": at, **sample})
    return found


def test_a_leak_is_found_with_its_rate() -> None:
    at_s = np.arange(0.0, 3600.0, 5.0)
    slope = slope_of(
        at_s.tolist(), (500.0 + 40.0 * at_s / 3600.0 + noise(len(at_s))).tolist(), np.random.default_rng(0)
    )
    assert slope is not None
    assert slope.low < 40.0 < slope.high
    assert slope.per_hour == pytest.approx(40.0, rel=0.1)
    assert slope.grows(16.0)
    assert not slope.grows(60.0)


def test_noise_is_no_leak() -> None:
    at_s = np.arange(0.0, 3600.0, 5.0)
    false = 0
    for seed in range(8):
        slope = slope_of(at_s.tolist(), (500.0 + noise(len(at_s), seed)).tolist(), np.random.default_rng(0))
        assert slope is not None
        false += slope.grows(1.0)
    assert false <= 1


def test_what_fills_in_the_beginning_is_no_leak_and_what_goes_on_is() -> None:
    assert [name for name, entry in leaks(timeline()).items() if entry["is_leak"]] == []
    assert [name for name, entry in leaks(timeline(num_fds=30.0)).items() if entry["is_leak"]] == ["num_fds"]


def test_of_what_could_not_be_read_nothing_is_said() -> None:
    found = leaks([{name: value for name, value in each.items() if name != "num_fds"} for each in timeline()])
    assert list(found) == ["rss_mib", "num_threads", "num_processes"]


def test_growth_has_a_unit_and_says_what_grows() -> None:
    found = {label: (unit, grows) for label, unit, *_, grows in growth_rows(leaks(timeline(num_fds=30.0)))}
    assert found["memory"] == ("MiB", "")
    assert found["descriptors"] == ("number", "grows")


def test_too_few_samples_say_nothing() -> None:
    assert leaks(timeline()[:20]) == {}
    assert leaks([{"at_s": 0.0}]) == {}
    assert slope_of([0.0, 0.0] * 20, [1.0, 2.0] * 20, np.random.default_rng(0)) is not None


def test_a_soak_watches_the_servers_processes(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--url", url, "--rate", "40", "--duration", "1s", "--slo", "ttft=1h,objective=0.5", *GENEROUS)
    arguments = ["bench", "soak", *load, "--server-pid", str(os.getpid()), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rounds"][0]["server"]["rss_mib_max"] > 0.0
    assert document["leaks"] == {}
    assert main([*arguments[:-1], str(tmp_path / "again")]) == 0
    assert "too short to say" in capsys.readouterr().out


def test_ctrl_c_before_there_is_anything_is_an_interrupted_soak(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "run_round", interrupted)
    load = ("--url", url, "--rate", "1", "--server-pid", str(os.getpid()))
    assert main(["bench", "soak", *load, "--out", str(tmp_path)]) == 130
    assert documents.read(tmp_path).document["status"] == "interrupted"


def test_a_soak_without_a_process_to_look_at_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "soak", "--url", url, "--rate", "1"]) == 2
    assert "--server-pid" in capsys.readouterr().err
