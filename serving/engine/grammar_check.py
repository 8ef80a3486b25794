"""May the engine be given this constraint? Asked in a sandbox, once per constraint, and before the engine's app.

vLLM's frontend turns a schema, pattern or grammar into its own form on the event loop that carries every stream of
the replica, in time cubic in a schema's depth, and what crashes there takes the replica
along. Here a child of the sandbox does it; the verdict is kept under the SHA-256 of what was asked.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from serving.engine.base import current_request
from serving.engine.constraints import Constraint, constraints_of
from serving.engine.sandbox import Overrun, Unavailable
from serving.protocol.asgi import AsgiApp, Message, Receive, Scope, Send

Fields = Mapping[str, Any]
"""Fields of vLLM's ``StructuredOutputsParams``."""

MAX_VERDICTS = 1024
#: A verdict larger than this is not kept: a long ``choice`` comes back as a grammar of its length.
MAX_KEPT_BYTES = 32_768
_MAX_REASON_CHARS = 300


class Runner(Protocol):
    """``Sandbox``, or a test's own."""

    async def run(self, job: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Settled:
    """What vLLM's validation decides for one constraint: the backend, and the grammar that it wrote for a choice or
    from another notation.
    """

    backend: str
    was_auto: bool
    grammar: str | None


class Refused(Exception):
    """The constraint at ``index`` cannot be had; None: all together take too much."""

    def __init__(self, reason: str, index: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.index = index


Verdict = tuple[Settled, ...] | Refused


class GrammarCheck:
    """Asks ``runner``, and remembers. One per replica, on its event loop."""

    def __init__(self, runner: Runner, cpu_s: float) -> None:
        self._runner = runner
        self._too_much = f"it takes more than {cpu_s:g} s of processor time, or too much memory"
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Verdict]] = {}

    async def settle(self, constraints: Sequence[Fields]) -> tuple[Settled, ...]:
        """What to tell the engine of each. Raises ``Refused`` and ``Unavailable``.

        The bound on processor time is on all of them together.
        """
        try:
            job = orjson.dumps(constraints)
        except TypeError:  # deeper than a gateway lets through, or a number of over 64 bits
            raise Refused("it is nested too deeply, or holds too large a number", None) from None
        key = hashlib.sha256(job).digest()
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            verdict = self._verdicts[key]
        else:
            if key not in self._asking:
                self._asking[key] = task = asyncio.create_task(self._ask(key, job))
                task.add_done_callback(_retrieve)
            # Others may wait for the same verdict, and a hostile client does not get it asked anew by leaving.
            verdict = await asyncio.shield(self._asking[key])
        if isinstance(verdict, Refused):
            raise Refused(verdict.reason, verdict.index)
        return verdict

    async def _ask(self, key: bytes, job: bytes) -> Verdict:
        verdict: Verdict
        try:
            answer = await self._runner.run(job)
            verdict = _verdict(orjson.loads(answer))
            size = len(answer)
        except Overrun:
            verdict, size = Refused(self._too_much, None), 0
        finally:
            del self._asking[key]
        if size <= MAX_KEPT_BYTES:
            self._verdicts[key] = verdict
            while len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        return verdict


def _retrieve(task: "asyncio.Task[Verdict]") -> None:
    """Keeps asyncio from reporting an exception that nobody stayed to hear."""
    if not task.cancelled():
        task.exception()


def _verdict(outcomes: list[dict[str, Any]]) -> Verdict:
    if "error" in outcomes[-1]:
        reason = str(outcomes[-1]["error"]).strip().partition("\n")[0][:_MAX_REASON_CHARS]
        return Refused(reason, len(outcomes) - 1)
    return tuple(Settled(**outcome) for outcome in outcomes)


class CheckedApp:
    """An engine's app that sees a request only when its constraints have passed. Others go straight through."""

    def __init__(self, app: AsgiApp, check: GrammarCheck) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = current_request.get(None)
        if request is None or not request.is_constrained:
            await self._app(scope, receive, send)
            return
        message = await receive()
        constraints = constraints_of(orjson.loads(message["body"]))
        try:
            if constraints:
                await self._check.settle([constraint.fields for constraint in constraints])
        except Refused as refused:
            param = _param(constraints, refused.index)
            await _answer(send, 400, f"Invalid '{param}': no grammar can be made of it: {refused.reason}.", param)
        except Unavailable as unavailable:
            await _answer(send, 503, f"grammars cannot be checked now: {unavailable}", None)
        else:
            await self._app(scope, _replaying(message, receive), send)


def _param(constraints: list[Constraint], index: int | None) -> str:
    """The field that is at fault. Several at once are only ever tools."""
    if index is None and len(constraints) > 1:
        return "tools"
    return constraints[index or 0].param


def _replaying(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _answer(send: Send, status: int, message: str, param: str | None) -> None:
    """An error in the engine's shape; the gateway puts it into the client's."""
    body = orjson.dumps({"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}})
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
