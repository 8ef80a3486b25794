"""Ports that stay free until they are used."""

import socket
from pathlib import Path

import pytest

from serving import ports


def test_a_port_is_found_that_the_kernel_gives_to_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tmp_path / "range"
    usual.write_text("32768\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL_PORTS", usual)
    found = {ports.free_port() for _ in range(20)}
    assert len(found) > 10
    assert all(20_000 <= port < 30_000 for port in found)


def test_a_port_that_is_taken_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.socket()
    with taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports.random.SystemRandom, "sample", lambda self, own, number: [port])
        assert ports.free_port() != port


def test_several_are_different_and_none_of_those_that_others_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_out = iter([20_001, 20_002, 20_002, 20_003])
    monkeypatch.setattr(ports, "free_port", lambda: next(handed_out))
    assert ports.free_ports(2, besides=(20_001,)) == [20_002, 20_003]


def test_where_the_kernel_hands_out_all_of_them_the_choice_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = tmp_path / "range"
    everything.write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "_EPHEMERAL_PORTS", everything)
    assert ports.free_port() >= 1024
