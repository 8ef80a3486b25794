"""Reading a body: bounded in bytes and in time, of a type we take."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import BodyTimeout, BodyTooLarge, HeadersTooLarge, Overloaded, UnsupportedMediaType
from serving.gateway.body import check_headers, check_media, read_body
from serving.gateway.exchange import ClientGone
from serving.protocol.asgi import Message, Receive

JSON = (b"content-type", b"application/json")


def arriving(*parts: bytes, then: Message | None = None) -> Receive:
    """``receive`` of a body in parts; after them ``then``, or nothing ever."""
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": then is not None or index < len(parts) - 1}
        for index, part in enumerate(parts)
    ]
    messages += [then] if then else []

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return receive


def ignore(num_bytes: int) -> None:
    """Where nobody counts them."""


@given(parts=st.lists(st.binary(max_size=50), min_size=1, max_size=10))
def test_a_body_is_its_parts_joined_up_to_the_limit(parts: list[bytes]) -> None:
    body = b"".join(parts)
    assert asyncio.run(read_body(arriving(*parts), len(body), 5, ignore)) == body
    if body:
        with pytest.raises(BodyTooLarge):
            asyncio.run(read_body(arriving(*parts), len(body) - 1, 5, ignore))


async def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    parts = [b"x" * 100] * 1000
    receive = arriving(*parts)
    with pytest.raises(BodyTooLarge):
        await read_body(receive, 250, 5, ignore)
    assert (await receive())["more_body"], "three parts were taken, not all"


async def test_a_body_that_does_not_arrive_is_a_timeout() -> None:
    with pytest.raises(BodyTimeout, match=r"within 0\.01 s"):
        await read_body(
            arriving(b"x", then={"type": "http.request", "body": b"", "more_body": True}), 100, 0.01, ignore
        )


async def test_a_client_that_leaves_is_gone() -> None:
    with pytest.raises(ClientGone):
        await read_body(arriving(b"x", then={"type": "http.disconnect"}), 100, 5, ignore)


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"Application/JSON; charset=utf-8", b" application/json ;x=y"]
)
def test_json_is_taken_in_any_spelling(content_type: bytes) -> None:
    check_media([(b"content-type", content_type)], 100)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"multipart/form-data; boundary=x")],
        [(b"content-type", b"\xff")],
        [JSON, (b"content-encoding", b"gzip")],
        [JSON, (b"content-encoding", b"br")],
        [JSON, (b"content-encoding", b"identity, gzip")],
    ],
)
def test_other_types_and_encodings_are_415(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_media(headers, 100)


@pytest.mark.parametrize("length", [b"101", b"2147483648", b"9" * 30])
def test_an_announced_length_over_the_limit_is_refused_unread(length: bytes) -> None:
    with pytest.raises(BodyTooLarge):
        check_media([JSON, (b"content-length", length)], 100)
    check_media([JSON, (b"content-length", b"100")], 100)


def test_headers_are_bounded_in_number_and_in_bytes() -> None:
    check_headers([(b"a", b"b")] * 10, 10, 20)
    with pytest.raises(HeadersTooLarge):
        check_headers([(b"a", b"b")] * 11, 10, 100)
    with pytest.raises(HeadersTooLarge):
        check_headers([(b"a", b"b" * 20)], 10, 20)


async def test_every_part_is_reported_as_it_comes_and_may_be_the_last() -> None:
    sizes: list[int] = []
    await read_body(arriving(b"abc", b"", b"de"), 100, 5, sizes.append)
    assert sum(sizes) == 5

    def refuse(num_bytes: int) -> None:
        raise Overloaded("no room")

    with pytest.raises(Overloaded):
        await read_body(arriving(b"x", b"y"), 100, 5, refuse)
