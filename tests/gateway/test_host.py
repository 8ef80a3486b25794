"""No web page reaches the admin port under a name of its own."""

import pytest

from serving.gateway.host import is_local_name


@pytest.mark.parametrize(
    "host", [b"localhost", b"LocalHost:8001", b"x.localhost:1", b"127.0.0.1:8001", b"[::1]:8001", b"10.1.2.3", b""]
)
def test_addresses_and_localhost_are_taken(host: bytes) -> None:
    assert is_local_name([(b"host", host)])


@pytest.mark.parametrize(
    "host", [b"evil.example", b"evil.example:8001", b"127.0.0.1.evil.example", b"localhost.evil.example", b"\xff"]
)
def test_other_names_are_not(host: bytes) -> None:
    assert not is_local_name([(b"host", host)])


def test_a_request_without_a_name_is_from_no_browser() -> None:
    assert is_local_name([(b"accept", b"*/*")])
