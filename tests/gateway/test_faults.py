"""The fault list over real HTTP (rows F13 to F15, F23 to F33): each answered as stated, unnoticed by a neighbour."""

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from serving.edge.local_socket import LocalSocket
from serving.engine.grammar_check import CheckedApp, GrammarCheck
from serving.engine.sandbox import Sandbox
from serving.engine.scripted import Script, ScriptedEngine
from serving.protocol.asgi import AsgiApp
from tests.support.dialects import BODIES
from tests.support.engines import NeighbourEngine
from tests.support.stack import CHAT, Stack, chat, chat_bytes, rss_bytes, start_stack
from tests.support.wire import GUARD_S, Wire, post

MIB = 2**20
#: Longest silence in a neighbour's stream of a word every few milliseconds. Generous: the machine may be busy.
LONGEST_GAP_S = 3.0


@pytest.fixture
def engine() -> NeighbourEngine:
    return NeighbourEngine(Script(step_s=0.003))


@pytest.fixture
async def stack(tmp_path: Path, engine: NeighbourEngine) -> AsyncIterator[Stack]:
    async with start_stack(tmp_path, engine, limits={"body_timeout_s": 0.2, "stream_buffer_bytes": 4096}) as started:
        yield started


@asynccontextmanager
async def neighbour(stack: Stack) -> AsyncIterator[None]:
    """A stream that is open before and ends after the body of the ``with``: whole, in order, without a long silence."""
    engine = stack.engines[0]
    async with await stack.open_chat("!neighbour") as wire:
        await wire.read_head()
        reading = asyncio.create_task(words_and_gap(wire))
        try:
            await stack.until(lambda: engine.num_words > 2)
            yield
            before = engine.num_words
            await stack.until(lambda: engine.num_words > before + 2)
        finally:
            engine.finish.set()
            words, longest_gap_s = await reading
    assert words == [b'{"word": %d}' % number for number in range(engine.num_words)] + [b"[DONE]"]
    assert longest_gap_s < LONGEST_GAP_S


async def words_and_gap(wire: Wire) -> tuple[list[bytes], float]:
    data, longest_gap_s, last_s = b"", 0.0, time.monotonic()
    async for chunk in wire.chunks():
        now_s = time.monotonic()
        longest_gap_s, last_s = max(longest_gap_s, now_s - last_s), now_s
        data += chunk
    return [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event], longest_gap_s


# ---------------------------------------------------------------------------------- F25 to F30, F33: bad request bodies


@dataclass(frozen=True)
class Bad:
    """A request that is refused: its fields over the endpoint's smallest body, or its bytes; and the answer."""

    fields: dict[str, object] = field(default_factory=dict)
    code: str | None = None
    param: str | None = None
    path: str = CHAT
    raw: bytes | None = None
    status: int = 400

    def request(self) -> bytes:
        body = json.dumps({**BODIES[self.path], **self.fields}).encode() if self.raw is None else self.raw
        return post(self.path, body)


COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
JSON, RANGE = "invalid_json", "integer_above_max_value"


def schema_of(schema: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


RECURSIVE = {"$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"}
REMOTE = {"$ref": "http://169.254.169.254/latest/meta-data"}

BAD: dict[str, list[Bad]] = {
    "F25 malformed JSON": [
        Bad(raw=b'{"model": "demo", ', code=JSON),
        Bad(raw=b"", code=JSON),
        Bad(raw=b'[{"model": "demo"}]', code=JSON),
        Bad(raw=b'{"model": ' + b"[" * 50_000),
        Bad(raw=b'{"model": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        Bad(raw=b'{"model": "demo", "model": "other"}', code="duplicate_key"),
        Bad(raw=b'{"model": "demo", "temperature": NaN}', code=JSON),
        Bad(raw=b'{"model": "demo", "temperature": Infinity}', code=JSON),
        Bad(raw=b'{"model": "\xc3\x28"}', code=JSON),
        Bad(raw=b'{"model": "\\udfff"}', code=JSON),
        Bad(raw=b'{"model": "demo\\u0000"}', code=JSON),
        Bad(raw=b"\xef\xbb\xbf{}", code=JSON),
        Bad(raw=b"{}", code="missing_required_parameter", path=MESSAGES),
        Bad(raw=b"not json", code=JSON, path=MESSAGES),
        Bad(raw=b"not json", code=JSON, path=RESPONSES),
    ],
    "F26 output and context": [
        Bad({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        Bad({"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
        Bad({"max_tokens": 10**9}, "context_length_exceeded", "max_tokens"),
        Bad({"max_tokens": 2**70}, RANGE, "max_tokens"),
        Bad({"max_completion_tokens": 2**63}, RANGE, "max_completion_tokens"),
        Bad({"prompt": [1] * 5000, "max_tokens": 1}, "context_length_exceeded", path=COMPLETIONS),
        Bad({"max_output_tokens": 10**9}, "context_length_exceeded", path=RESPONSES),
        Bad({"max_tokens": 10**9}, path=MESSAGES),
    ],
    "F27 many answers": [
        Bad({"n": 2000}, RANGE, "n"),
        Bad({"n": 10**9}, RANGE, "n"),
        Bad({"n": 0}, "integer_below_min_value", "n"),
        Bad({"best_of": 9}, None, "best_of", COMPLETIONS),
        Bad({"use_beam_search": True}, None, "use_beam_search"),
        Bad({"logprobs": True, "top_logprobs": 10**6}, RANGE, "top_logprobs"),
        Bad({"logprobs": 10**6}, RANGE, "logprobs", COMPLETIONS),
        Bad({"prompt_logprobs": 5}, None, "prompt_logprobs"),
    ],
    "F28 sampling fields": [
        Bad({"logit_bias": {"9999999999": 1}}),
        Bad({"logit_bias": {"word": 1}}),
        Bad({"logit_bias": {"1": 1000}}),
        Bad({"logit_bias": {str(token): 1 for token in range(301)}}),
        Bad({"stop": ["a"] * 5}),
        Bad({"stop": [""]}),
        Bad({"stop": {}}),
        Bad({"stop": ["x" * 257]}),
        Bad({"bad_words": ["x"] * 5000}),
        Bad({"seed": 2**70}),
        Bad({"temperature": -1}),
        Bad({"temperature": "hot"}),
        Bad({"top_p": 2}),
    ],
    "F29 schema bombs": [
        Bad(schema_of(nested(40))),
        Bad(schema_of({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5001)}})),
        Bad(schema_of({"enum": [f"v{i}" for i in range(1001)]})),
        Bad(schema_of(RECURSIVE)),
        Bad(schema_of(REMOTE)),
        Bad(schema_of({"type": "array", "items": {}, "minItems": 10**9})),
        Bad(schema_of({"type": "string", "description": "x" * 70_000})),
        Bad({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(40)}}]}),
        Bad({"structured_outputs": {"json": nested(40)}}),
        Bad({"text": {"format": {"type": "json_schema", "name": "s", "schema": nested(40)}}}, path=RESPONSES),
        Bad({"tools": [{"name": "f", "input_schema": nested(40)}]}, path=MESSAGES),
    ],
    "F30 patterns and grammars": [
        Bad({"structured_outputs": {"regex": "(a+)+$"}}),
        Bad({"structured_outputs": {"grammar": "root ::= root"}}),
        Bad({"structured_outputs": {"structural_tag": "{}"}}),
        Bad({"guided_regex": "(a+)+$"}),
        Bad(schema_of({"type": "string", "pattern": "(a+)+$" * 1000})),
    ],
    "F33 dangerous fields": [
        Bad({"kv_transfer_params": {"do_remote_prefill": True}}),
        Bad({"vllm_xargs": {"a": 1}}),
        Bad({"chat_template": "{{ 1 }}"}),
        Bad({"chat_template_kwargs": {"tokenize": True}}),
        Bad({"mm_processor_kwargs": {"a": 1}}),
        Bad({"prompt_embeds": "AAAA"}, path=COMPLETIONS),
        Bad({"lora_request": "x"}),
        Bad({"made_up_field": 1}, "unknown_parameter", "made_up_field"),
        Bad({"audio": {"voice": "x"}}),
        Bad({"web_search_options": {}}),
        Bad({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": REMOTE["$ref"]}}]}]}),
        Bad({"model": "../../etc/passwd"}, "model_not_found", "model", status=404),
        Bad({"model": None}, "missing_required_parameter", "model"),
    ],
}


@pytest.mark.parametrize("fault", BAD)
async def test_a_bad_body_is_refused_as_stated_and_reaches_no_engine(
    stack: Stack, engine: NeighbourEngine, fault: str
) -> None:
    async with neighbour(stack), await stack.wire() as wire:
        for bad in BAD[fault]:
            await wire.send(bad.request())
            answer = await wire.answer()
            assert answer.headers["content-type"] == "application/json", f"{bad.fields or bad.raw!r:.80}"
            error = answer.json()["error"]
            shown = f"{bad.fields or bad.raw!r:.80}: {answer.status} {error}"
            assert answer.status == bad.status, shown
            assert answer.headers["x-request-id"].startswith("req-"), shown
            if bad.path == MESSAGES:
                assert answer.json()["type"] == "error", shown
                continue
            assert set(error) == {"message", "type", "param", "code"}, shown
            assert bad.code in (None, error["code"]), shown
            assert bad.param in (None, error["param"]), shown
    assert engine.num_requests == 1, "only the neighbour reached the engine"


class CheckedEngine(NeighbourEngine):
    """A neighbour's engine behind the check of constraints, with a sandbox of its own."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.sandbox = Sandbox("tests.support.jobs:load_grammars", b"", GRAMMAR_CPU_S)
        self._checked = CheckedApp(super().app, GrammarCheck(self.sandbox, GRAMMAR_CPU_S))

    @property
    def app(self) -> AsgiApp:
        return self._checked


GRAMMAR_CPU_S = 0.3
TITLED: dict[str, Callable[[str], dict[str, object]]] = {
    CHAT: lambda title: schema_of({"title": title}),
    COMPLETIONS: lambda title: {"structured_outputs": {"json": {"title": title}}},
    RESPONSES: lambda title: {"text": {"format": {"type": "json_schema", "name": "s", "schema": {"title": title}}}},
    MESSAGES: lambda title: {
        "tools": [{"name": "f", "input_schema": {"title": title}}], "tool_choice": {"type": "tool", "name": "f"},
    },
}  # fmt: skip
PARAMS = {
    CHAT: "response_format.json_schema.schema",
    COMPLETIONS: "structured_outputs.json",
    RESPONSES: "text.format.schema",
    MESSAGES: "tools[0].input_schema",
}


async def test_f29_a_schema_that_takes_too_long_is_400_in_every_dialect_and_a_neighbour_goes_on_meanwhile(
    tmp_path: Path,
) -> None:
    engine = CheckedEngine(Script(step_s=0.003))
    engine.sandbox.start()
    try:
        async with start_stack(tmp_path, engine) as stack, neighbour(stack), await stack.wire() as wire:
            await wire.send(Bad(TITLED[CHAT]("good")).request())
            assert (await wire.answer()).status == 200
            for path, titled in TITLED.items():
                for title, reason in (("!spin", f"more than {GRAMMAR_CPU_S:g} s of processor time"), ("!bad", "bad")):
                    num_words = engine.num_words
                    await wire.send(Bad(titled(title), path=path).request())
                    answer = await wire.answer()
                    assert answer.status == 400
                    error = answer.json()["error"]
                    assert error["type"] == "invalid_request_error"
                    assert f"'{PARAMS[path]}'" in error["message"]
                    assert reason in error["message"]
                    assert error.get("param") == (None if path == MESSAGES else PARAMS[path])
                    if title == "!spin" and path == CHAT:
                        assert engine.num_words > num_words + 10, "none, had the engine's own process done it"
            assert engine.num_requests == 2, "the neighbour and the good one"
    finally:
        await engine.sandbox.stop()


async def test_f33_what_is_dropped_silently_does_not_reach_the_engine_either(stack: Stack) -> None:
    async with neighbour(stack):
        response = await stack.client.post(CHAT, json=chat(max_tokens=1, store=False, metadata={"a": "b"}))
        assert response.status_code == 200


# --------------------------------------------------------------------------------------------- F31: ids of the client's


async def test_f31_equal_ids_at_the_same_time_are_two_requests(stack: Stack) -> None:
    async with neighbour(stack):
        headers = {"x-request-id": "same"}
        responses = await asyncio.gather(
            *(stack.client.post(CHAT, json=chat(max_tokens=3), headers=headers) for _ in range(5))
        )
        assert [response.status_code for response in responses] == [200] * 5
        assert len({response.headers["x-request-id"] for response in responses}) == 5
        await stack.until(lambda: sum(line["client_request_id"] == "same" for line in stack.logs.requests()) == 5)


@pytest.mark.parametrize("client_id", ["A" * 5000, "a\r\nset-cookie: x=1", "a\nb", "a\x00b"])
async def test_f31_a_long_or_forged_id_is_never_repeated(stack: Stack, client_id: str) -> None:
    async with neighbour(stack), await stack.wire() as wire:
        await wire.send(post(CHAT, chat_bytes(max_tokens=1), {"x-request-id": client_id}))
        answer = await wire.answer()
        assert answer.status in (200, 400)
        assert "set-cookie" not in answer.headers
        assert "AAAA" not in str(answer.headers) + "".join(stack.logs.lines)


# ---------------------------------------------------------------------------------------------------- F32: bad headers


def with_head(lines: str, body: bytes = b"{}") -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


TYPE = "content-type: application/json\r\n"
CHUNKED_BODY = b"2\r\n{}\r\n0\r\n\r\n"
BAD_HEADS = {
    "length and chunked": (
        with_head(f"host: x\r\n{TYPE}content-length: 2\r\ntransfer-encoding: chunked\r\n", CHUNKED_BODY), 400,
    ),
    "two lengths": (with_head(f"host: x\r\n{TYPE}content-length: 2\r\ncontent-length: 3\r\n"), 400),
    "length with a sign": (with_head(f"host: x\r\n{TYPE}content-length: +2\r\n"), 400),
    "space before the colon": (with_head(f"host: x\r\n{TYPE}content-length : 2\r\n"), 400),
    "folded header": (with_head(f"host: x\r\n{TYPE}x-a: b\r\n  c\r\ncontent-length: 2\r\n"), 400),
    "bare CR": (with_head(f"host: x\r\n{TYPE}x-a: b\rc: d\r\ncontent-length: 2\r\n"), 400),
    "NUL": (with_head(f"host: x\r\n{TYPE}x-a: b\x00c\r\ncontent-length: 2\r\n"), 400),
    "unknown coding": (with_head(f"host: x\r\n{TYPE}transfer-encoding: xchunked\r\n", CHUNKED_BODY), 400),
    "300 headers": (post(CHAT, b"{}", {f"x-{number}": "v" for number in range(300)}), 431),
    "64 KB header": (post(CHAT, b"{}", {"x-long": "v" * 65_536}), 431),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_f32_a_bad_head_is_refused_and_the_connection_closed(
    stack: Stack, engine: NeighbourEngine, name: str
) -> None:
    request, status = BAD_HEADS[name]
    async with neighbour(stack), await stack.wire() as wire:
        await wire.send(request)
        answer = await wire.answer()
        assert answer.status == status
        await wire.until_closed()
    assert engine.num_requests == 1


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1:1@evil", "a" * 2000, "<script>", "../../"])
async def test_f32_the_host_header_changes_nothing(stack: Stack, host: str) -> None:
    async with await stack.wire() as wire:
        await wire.send(post(CHAT, chat_bytes(max_tokens=1), {"host": host}))
        answer = await wire.answer()
        assert answer.status == 200
        assert host == "" or host not in str(answer.headers) + answer.body.decode()


# ------------------------------------------------------------------------------------------- F23, F24: bodies too large


async def test_f23_two_announced_gigabytes_are_413_unread(stack: Stack, engine: NeighbourEngine) -> None:
    async with neighbour(stack), await stack.wire() as wire:
        await wire.send(post(CHAT, b"", {"content-length": str(2**31)}))
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")
        await wire.until_closed()
    assert engine.num_requests == 1


async def test_f23_endless_chunked_bodies_are_413_at_the_limit_and_memory_is_flat(
    tmp_path: Path, engine: NeighbourEngine
) -> None:
    """A body without a length is really read, up to the limit, and no further; what it took is given back."""
    async with start_stack(tmp_path, engine) as stack, neighbour(stack):
        before_bytes = rss_bytes()
        for _ in range(NUM_WAVES):
            sent_bytes = await asyncio.gather(*(endless_upload(stack) for _ in range(NUM_UPLOADS)))
            assert all(4 * MIB <= count < 16 * MIB for count in sent_bytes)
            # All that may be held at once, and as much again for copies; over the waves ten times that comes in.
            assert rss_bytes() - before_bytes < 2 * NUM_UPLOADS * 4 * MIB
    assert engine.num_requests == 1


NUM_UPLOADS, NUM_WAVES = 10, 20


async def endless_upload(stack: Stack) -> int:
    """How many bytes of a body that never ends were sent until it was refused, and the connection closed."""
    async with await stack.wire() as wire:
        await wire.send(post(CHAT, b"").replace(b"content-length: 0", b"transfer-encoding: chunked"))
        answering = asyncio.create_task(wire.answer())
        sent_bytes = await send_until(wire, b"10000\r\n" + b"x" * 65_536 + b"\r\n", answering)
        answer = await answering
        assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"
        wire.abort()
    return sent_bytes


async def send_until(wire: Wire, piece: bytes, done: "asyncio.Task[object]") -> int:
    """Send ``piece`` again and again; how many bytes it took until ``done``."""
    sent_bytes = 0
    async with asyncio.timeout(GUARD_S):
        while not done.done():
            with contextlib.suppress(OSError):  # the server has closed, and its answer is on the way
                await wire.send(piece)
            sent_bytes += len(piece)
            await asyncio.sleep(0.001)
    return sent_bytes


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "made-up"])
async def test_f23_an_encoded_body_is_415_unread(stack: Stack, engine: NeighbourEngine, encoding: str) -> None:
    async with neighbour(stack), await stack.wire() as wire:
        await wire.send(post(CHAT, b"\x1f\x8b" + b"\0" * 1000, {"content-encoding": encoding}))
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
        await wire.until_closed()
    assert engine.num_requests == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_f24_a_body_that_drips_is_408_after_its_deadline(
    stack: Stack, engine: NeighbourEngine, chunked: bool
) -> None:
    async with neighbour(stack), await stack.wire() as wire:
        head = post(CHAT, b"", {"content-length": "100000"})
        await wire.send(head.replace(b"content-length: 100000", b"transfer-encoding: chunked") if chunked else head)
        answering = asyncio.create_task(wire.answer())
        await send_until(wire, b"1\r\n{\r\n" if chunked else b"{", answering)
        answer = await answering
        assert (answer.status, answer.json()["error"]["code"]) == (408, "request_timeout")
        await wire.until_closed()
    assert engine.num_requests == 1


# ------------------------------------------------------------------------------------------------ F13 to F15, and many


async def test_f13_slow_readers_cost_bounded_memory_and_do_not_slow_a_neighbour(tmp_path: Path) -> None:
    num_readers, held_bytes = 500, 256 * 1024
    allow_files(4 * num_readers)
    engine = NeighbourEngine(Script(max_num_seqs=num_readers, max_model_len=10**6))
    async with start_stack(tmp_path, engine, limits={"stream_buffer_bytes": 4096}) as stack, neighbour(stack):
        before_bytes = rss_bytes()
        wires = [await stack.wire(receive_buffer_bytes=2048, limit_bytes=512) for _ in range(num_readers)]
        for wire in wires:
            await wire.post(CHAT, chat_bytes(stream=True, max_tokens=100_000))
        await stalled(engine)
        # The words of a paused stream are never made, so nothing holds them.
        num_tokens, full_bytes, num_words = engine.load().generated_tokens, rss_bytes(), engine.num_words
        assert num_tokens < num_readers * held_bytes / 150
        assert full_bytes - before_bytes < num_readers * held_bytes
        assert engine.load().running == num_readers
        started_s = time.monotonic()
        await stack.until(lambda: engine.num_words > num_words + 100)
        assert time.monotonic() - started_s < LONGEST_GAP_S, "a hundred words, made every few milliseconds"
        assert engine.load().generated_tokens == num_tokens
        assert rss_bytes() - full_bytes < 8 * MIB, "flat"
        for wire in wires:
            wire.abort()
        await stack.until(lambda: len(engine.aborted) == num_readers)


async def stalled(engine: ScriptedEngine) -> None:
    """Until the engine has made no token for a while: every reader's stream is paused."""
    unchanged, last = 0, -1
    async with asyncio.timeout(30):
        while unchanged < 20:
            await asyncio.sleep(0.005)
            made = engine.load().generated_tokens
            unchanged, last = unchanged + 1 if made == last and made else 0, made


async def test_f14_clients_that_leave_free_everything_and_are_logged_as_499(
    stack: Stack, engine: NeighbourEngine
) -> None:
    async with neighbour(stack):
        wires = [await stack.open_chat("!stall") for _ in range(10)]
        wires += [await stack.open_chat("mid-stream", max_tokens=4000) for _ in range(10)]
        await stack.until(lambda: engine.load().running == 20 and engine.load().generated_tokens > 50)
        async with asyncio.timeout(1):
            for wire in wires:
                wire.abort()
            await stack.until(lambda: len(engine.aborted) == 20)
        await stack.until(lambda: sum(line["status"] == 499 for line in stack.logs.requests()) == 20)
        assert engine.load().running == 0
        assert stack.inference.num_in_flight == 1, "the neighbour's"
        assert sum(line["output_tokens"] for line in stack.logs.requests()) == engine.load().generated_tokens


async def test_f15_a_gateway_that_drains_is_not_ready_but_alive_and_finishes_what_it_has(stack: Stack) -> None:
    async with neighbour(stack):
        stack.gateway.is_ready = False
        assert (await stack.client.get("/ready")).status_code == 503
        assert (await stack.client.get("/health")).status_code == 200


async def test_f15_a_replica_that_drains_gets_no_new_request_and_finishes_what_it_has(tmp_path: Path) -> None:
    engines = [ScriptedEngine(Script(step_s=0.003)), ScriptedEngine(Script())]
    async with start_stack(tmp_path, *engines) as stack:
        wires = [await stack.open_chat(max_tokens=60) for _ in range(4)]
        for wire in wires:
            await wire.read_until(b"w0 ")
        running = engines[0].load().running
        draining = asyncio.create_task(stack.replicas[0].drain(5))
        await stack.until(lambda: sum(replica.is_ready for replica in stack.directory.all()) == 1)
        for _ in range(10):
            assert (await stack.client.post(CHAT, json=chat(max_tokens=1))).status_code == 200
        for wire in wires:
            assert b"[DONE]" in await wire.read_until(b"0\r\n\r\n")
            await wire.close()
        await draining
        assert engines[0].load().generated_tokens == running * 60


async def test_f15_a_drain_that_runs_out_ends_streams_with_an_error_event(tmp_path: Path) -> None:
    engine = ScriptedEngine(Script(step_s=0.003))
    async with start_stack(tmp_path, engine) as stack, await stack.open_chat(max_tokens=4000) as wire:
        await wire.read_until(b"w0 ")
        await stack.replicas[0].drain(0.02)
        await stack.replicas[0].close()
        rest = await wire.read_until(b"0\r\n\r\n")
        assert b'"code":"engine_unavailable"' in rest
        assert b"[DONE]" not in rest
        line = await stack.request_line(status=200)
        assert line["error"]
        assert line["output_tokens"] == engine.load().generated_tokens


async def test_f15_a_gateway_whose_time_is_up_says_so_to_streams_and_to_those_who_wait(tmp_path: Path) -> None:
    """One slot, and one more place in the engine's own queue: the third request waits in the gateway."""
    async with start_stack(tmp_path, ScriptedEngine(Script(step_s=0.003, max_num_seqs=1))) as stack:
        streams = [await stack.open_chat(max_tokens=4000) for _ in range(2)]
        await streams[0].read_until(b"w0 ")
        waiting = asyncio.create_task(stack.client.post(CHAT, json=chat(max_tokens=1)))
        await stack.until(lambda: stack.inference.num_in_flight == 3)
        stack.inference.end_all()
        assert b'"code":"engine_unavailable"' in await streams[0].read_until(b"0\r\n\r\n")
        answer = await waiting
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(answer.headers["retry-after-ms"]) >= 1000
        await stack.until(lambda: stack.inference.num_in_flight == 0)
        for wire in streams:
            await wire.close()


async def test_f15_a_local_socket_that_drains_ends_what_it_has_and_takes_no_more(tmp_path: Path) -> None:
    async with start_stack(tmp_path, ScriptedEngine(Script(step_s=0.003))) as stack:
        local = LocalSocket(stack.gateway, tmp_path / "gateway.sock")
        local.start()
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "gateway.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            answer = asyncio.create_task(client.post(CHAT, json=chat(max_tokens=100)))
            await stack.until(lambda: stack.inference.num_in_flight == 1)
            assert not await local.drain(0.0)
            assert await local.drain(GUARD_S)
            assert (await answer).status_code == 200
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")
        await local.close()


async def test_a_thousand_concurrent_streams_all_come_whole(tmp_path: Path) -> None:
    num_streams, num_tokens = 1000, 6
    allow_files(4 * num_streams)
    engines = [ScriptedEngine(Script(prefill_s=0.3, step_s=0.05, max_num_seqs=num_streams)) for _ in range(2)]
    async with start_stack(tmp_path, *engines) as stack:
        before_bytes = rss_bytes()

        async def one() -> bytes:
            async with await stack.open_chat(max_tokens=num_tokens) as wire:
                await wire.read_head()
                return b"".join([chunk async for chunk in wire.chunks()])

        streams = [asyncio.create_task(one()) for _ in range(num_streams)]
        async with asyncio.timeout(40):
            bodies = await asyncio.gather(*streams)
        for body in bodies:
            assert [b"w%d " % number in body for number in range(num_tokens)] == [True] * num_tokens
            assert body.endswith(b"data: [DONE]\n\n")
        assert sum(engine.load().generated_tokens for engine in engines) == num_streams * num_tokens
        assert rss_bytes() - before_bytes < 200 * MIB, "both ends of every connection are in this process"
        await stack.until(lambda: stack.inference.num_in_flight == 0)
        assert all(line["status"] == 200 for line in stack.logs.requests())


def allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard >= 0 else count, hard))
